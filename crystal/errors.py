"""How the program ends before it is done: what the user can mend, and what the user asked for.

The surprise: Stopped stands here and not with the loop that raises it, so that `crystal/__main__.py` knows it without loading torch.
"""

from __future__ import annotations

import math


class Stopped(Exception):
    """The user asked to stop (Ctrl-C, SIGTERM) and the state has been saved."""


class UserError(ValueError):
    """Something the user can mend: one line that says what was got, what was expected, what to do."""


def require(ok: bool, got: str, expected: str, remedy: str) -> None:
    """Raise the one-line UserError `got; expected ...; remedy` unless `ok`."""
    if not ok:
        raise UserError(f"{got}; expected {expected}; {remedy}")


def require_positive(owner: str, values: dict[str, float | int]) -> None:
    """Every value is a finite number above zero, or a UserError names the key as `owner.key`; owner "" is the top."""
    for name, value in values.items():
        key = f"{owner}.{name}" if owner else name
        require(0 < value < math.inf, f"{key}={value:g}", "a finite number above 0", f"give {key} a positive value")

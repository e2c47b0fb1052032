"""The process that holds the program: executes it once, then answers what the judge asks about it.

The surprise: nothing here is trusted, nor needs to be. The program can change every object in this process and write to the line itself,
but all that it can say there is answers. What it must not find here is the check: who starts this process must not hold it either.
"""

from __future__ import annotations

import operator
import os
import random
import socket
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.code.sandbox.wire import End, execute

PROJECT = str(Path(__file__).parents[3])
FRAMES = 6  # between `serve` and what is called there


class Foreign:
    """Something of the judge's that the program was given: it can be called, or iterated over, and passed on."""

    def __init__(self, end: End) -> None:
        self._end = end

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._end.ask("call", self, args, kwargs)

    def __iter__(self) -> Foreign:
        return self

    def __next__(self) -> Any:
        return self._end.ask("next", self)


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": call,
    "getattr": getattr,
    "setattr": setattr,
    "iter": iter,
    "next": next,
    "len": len,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "isinstance": isinstance,
    "bool": operator.truth,
    "str": str,
    "repr": repr,
}


def serve(channel: socket.socket | int, program: str) -> None:
    """Execute `program`, answer whether it came to its end, then every question, until the other side of `channel` closes.

    Limits and whatever else contains this process are set by the caller.
    """
    # A module of its own, as dataclasses and pickle look for one; not `__main__`, whose block the peers do not run.
    module = types.ModuleType("program")

    def names(wanted: Sequence[str]) -> dict[str, Any]:
        """Those of `wanted` that the program defines."""
        return {name: vars(module)[name] for name in wanted if name in vars(module)}

    end = End(channel, OPERATIONS | {"names": names}, Foreign)
    sys.modules["program"] = sys.modules["__main__"] = module
    _deepen()
    random.seed(0)
    end.answer(lambda: execute(program, "<program>", vars(module)))
    end.serve()


def make_room() -> None:
    """Let programs find the standard library only. Done once, before the fork: there it would copy every page that it touches."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path not in ("", PROJECT)]
    sys.argv[:] = [""]
    os.environ.clear()


def _deepen() -> None:
    """Give the program as much stack as a script has."""
    frame, depth = sys._getframe(1), FRAMES
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    sys.setrecursionlimit(sys.getrecursionlimit() + depth)

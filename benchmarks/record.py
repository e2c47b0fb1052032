"""What every comparison needs: its options, what it was measured on, and where the result goes.

The surprise: the command that is recorded names no folder of the machine, since the result is committed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crystal.config import require
from crystal.machine import usable_cores
from crystal.runlog import write_json, write_text
from stages.record import git_commit


def options(arguments: Sequence[str], known: dict[str, Any]) -> dict[str, Any]:
    """key=value arguments over the defaults `known`, in the defaults' types; None: must be given. UserError for others."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    stray = sorted(given.keys() - known.keys())
    require(not stray, f"unknown option {', '.join(stray)}", f"some of {', '.join(known)}", "mend it")
    found = dict(known)
    for name, text in given.items():
        number = isinstance(known[name], int)
        require(not number or text.isdecimal(), f"{name}={text}", "a whole number", "mend it")
        found[name] = int(text) if number else text
    missing = [name for name, value in found.items() if value is None]
    require(not missing, f"no {', '.join(missing)}", ", ".join(f"{name}=PATH" for name in missing), "give it")
    return found


def provenance(command: str, packages: Sequence[str]) -> dict[str, Any]:
    """Command, commit, processor, cores, load, versions."""
    return {
        "command": command, "commit": git_commit(), "device": _processor(), "cores": usable_cores(), "load_average": os.getloadavg()[0],
        "python": platform.python_version(), "versions": {name: found for name in packages if (found := _version(name)) is not None},
    }  # fmt: skip


def write_result(out: Path, title: str, result: dict[str, Any], page: str) -> None:
    """`result` as JSON in `out`, and as Markdown beside it."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    made = (
        f"Made by `{result['command']}` at commit {result['commit']} on {result['device']}, {result['cores']} cores (load average at the "
        f"start {result['load_average']:.1f}), Python {result['python']}, {versions}."
    )
    write_json(out, result)
    write_text(out.with_suffix(".md"), f"# {title}\n\n{made}\n\n{page}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())

"""out=PATH, what a task is to write."""

from __future__ import annotations

from pathlib import Path

from crystal.config import Config, require


def new_out(config: Config, what: str) -> Path:
    """out=PATH, a "file" or a "folder". Raises UserError where it is not given or there already, so ask before anything is read."""
    require(config.out is not None, f"task={config.task} without out", f"a {what} to write", "give out=PATH")
    out = Path(str(config.out))
    require(not out.exists(), f"out={out} is there already", f"a {what} that is not there yet", "give another out, or delete it")
    return out

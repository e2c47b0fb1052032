"""out=PATH, what a task is to write."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from crystal.config import Config, require


def new_out(config: Config, what: str) -> Path:
    """out=PATH, a "file" or a "folder". Raises UserError where it is not given or there already, so ask before anything is read."""
    require(config.out is not None, f"task={config.task} without out", f"a {what} to write", "give out=PATH")
    out = Path(str(config.out))
    require(not out.exists(), f"out={out} is there already", f"a {what} that is not there yet", "give another out, or delete it")
    return out


def refuse_unwritable(out: Path, *modules: str) -> None:
    """Raise UserError, before any work, where findings could not be drawn with `modules` or written into `out`, old or new."""
    missing = [{"PIL": "pillow"}.get(module, module) for module in modules if find_spec(module) is None]
    require(not missing, f"no {' and '.join(missing)}", "what draws the picture", "run: pip install 'crystal-trainer[report]'")
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    usable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    require(usable, f"out={out}, but {there} is no folder to write into", "a folder", "give another out")

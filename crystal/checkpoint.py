"""Checkpoints: folders `step-00000120` that are there whole or not at all.

An engine writes its tensors into a folder with a temporary name; beside them go `state.json` (position, seeds, configuration) and the
tokenizer; last comes `COMPLETE`, which lists every file with its size and checksum; then the folder gets its name. The surprise: a
stage's newest checkpoint is found by name alone, for a name is proof of completeness.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch

from crystal.config import UserError, require
from crystal.engine import Engine

COMPLETE = "COMPLETE"
DAMAGED = "the file is damaged: take another checkpoint; a run goes on from the one before when this folder is deleted"


def save(root: Path, engine: Engine, state: dict[str, Any], *, tokenizer: Path, keep: int) -> Path:
    """Write `root/step-NNNNNNNN` from the engine and `state` (which gets "step"), then drop all but the newest `keep`."""
    folder = root / f"step-{engine.step_count:08d}"
    temporary = root / f".{folder.name}.tmp"
    for left_by_a_kill in root.glob(".step-*.tmp"):
        shutil.rmtree(left_by_a_kill)
    temporary.mkdir(parents=True)
    try:
        engine.save(temporary)
        shutil.copyfile(tokenizer, temporary / "tokenizer.json")
        (temporary / "state.json").write_text(json.dumps(state | {"step": engine.step_count}, indent=2) + "\n")
        sums = {path.name: _checksum(path, sync=True) for path in sorted(temporary.iterdir())}
        (temporary / COMPLETE).write_text(json.dumps(sums, indent=2) + "\n")
        _checksum(temporary / COMPLETE, sync=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        _sync_folder(root)  # before older ones go
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return folder


def write_tensors(path: Path, value: Any) -> None:
    """`torch.save` that raises OSError when the disk is full; torch itself raises a RuntimeError that does not say so."""
    with open(path, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def latest(root: Path) -> Path | None:
    """The newest checkpoint in `root`, or None."""
    return max(root.glob("step-*"), default=None)


def read_state(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against COMPLETE and return its state.json. Raises UserError where something is wrong."""
    require(folder.is_dir(), f"no checkpoint folder {folder}", "a folder like runs/NAME/stage1/checkpoints/step-00000120", "check the path")
    require((folder / COMPLETE).is_file(), f"{folder} has no file {COMPLETE}", "a complete checkpoint", "take another checkpoint")
    try:
        sums = json.loads((folder / COMPLETE).read_text())
        for name, expected in sums.items():
            got = _checksum(folder / name, sync=False)
            require(got == expected, f"{folder / name} has {got}", f"{expected}", DAMAGED)
        return json.loads((folder / "state.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError) as error:
        raise UserError(f"{folder} is not a whole checkpoint ({error}); expected one; {DAMAGED}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path, *, sync: bool) -> dict[str, int]:
    crc = 0
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}

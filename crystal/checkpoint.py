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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystal import mdl
from crystal.config import ModelConfig, UserError, require
from crystal.engine import Engine

COMPLETE = "COMPLETE"
MDL = "checkpoint.mdl"  # of the Cerebras backend, in place of weights.pt and optimizer.pt
DAMAGED = "the file is damaged: take another checkpoint; a run goes on from the one before when this folder is deleted"


def save(root: Path, engine: Engine, state: dict[str, Any], *, tokenizer: Path, keep: int) -> Path:
    """Write `root/step-NNNNNNNN` from the engine and `state` (which gets "step"), then drop all but the newest `keep`."""
    folder = root / f"step-{engine.step_count:08d}"
    root.mkdir(parents=True, exist_ok=True)  # the run's own, so it stays when this checkpoint fails
    for left_by_a_kill in root.glob(".step-*.tmp"):
        shutil.rmtree(left_by_a_kill)
    with whole(folder, replace=True) as temporary:
        engine.save(temporary)
        seal(temporary, state | {"step": engine.step_count}, tokenizer=tokenizer)
    for old in sorted(root.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return folder


@contextmanager
def whole(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder under a temporary name: with all its files on the disk it gets its own when the block has ended well, or it goes."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    new_parents = [parent for parent in temporary.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            _sync(path)
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new_parents:  # the innermost first; one that somebody else uses by now is not empty
            with suppress(OSError):
                parent.rmdir()
        raise


def seal(folder: Path, state: dict[str, Any], *, tokenizer: Path) -> None:
    """Make a folder that holds an engine's tensors a checkpoint: add `state`, the tokenizer and COMPLETE."""
    describe(folder, state, tokenizer=tokenizer)
    sums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / COMPLETE).write_text(json.dumps(sums, indent=2) + "\n")


def describe(folder: Path, state: dict[str, Any], *, tokenizer: Path) -> None:
    """Add `state` and the tokenizer to a folder."""
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")


def write_tensors(path: Path, value: Any) -> None:
    """`torch.save` that raises OSError when the disk is full; torch itself raises a RuntimeError that does not say so."""
    with open(path, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights by Crystal's names, float32, whichever backend wrote it."""
    if (folder / MDL).exists():
        return {name: tensor.read() for name, tensor in mdl.weights_in(folder / MDL).items()}
    return torch.load(folder / "weights.pt", weights_only=True)


def read_optimizer(folder: Path) -> dict[str, Any]:
    """{"step_count": updates in its stage, "adamw": {parameter's name: {"step", "exp_avg", "exp_avg_sq"}}}; empty before any update."""
    if (folder / MDL).exists():
        kept = mdl.optimizer_in(folder / MDL)
        assert kept is not None, "refused before, by its weights_only"
        states = kept["adamw"].items()
        return kept | {"adamw": {name: {key: tensor.read() for key, tensor in state.items()} for name, state in states}}
    return torch.load(folder / "optimizer.pt", weights_only=True)


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
            got = _checksum(folder / name)
            require(got == expected, f"{folder / name} has {got}", f"{expected}", DAMAGED)
        return json.loads((folder / "state.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError) as error:
        raise UserError(f"{folder} is not a whole checkpoint ({error}); expected one; {DAMAGED}") from error


def fingerprint(folder: Path) -> str:
    """By which the weights of a checkpoint are told from others under the same name, as "crc32:0a1b2c3d".

    It is the checksum that COMPLETE has of the file of the weights, which is not read; in a Cerebras checkpoint that file holds the
    optimizer's state too. Raises UserError where COMPLETE is missing or damaged.
    """
    try:
        sums = json.loads((folder / COMPLETE).read_text())
        return f"crc32:{sums[MDL if MDL in sums else 'weights.pt']['crc32']:08x}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a whole checkpoint ({type(error).__name__}: {error}); expected one; {DAMAGED}") from error


def read_model(folder: Path) -> ModelConfig:
    """The model of a checkpoint. Raises UserError where something is wrong with its files."""
    return kept_model(read_state(folder)["model"], folder)


def kept_model(kept: Any, where: Path | str) -> ModelConfig:
    """The model that `where` keeps as JSON; what was kept before ModelConfig had some field has its default. Raises UserError."""
    kept = kept if isinstance(kept, dict) else {"model": kept}
    known = {entry.name: {"int": int, "float": int | float, "str": str}[str(entry.type)] for entry in fields(ModelConfig)}
    wrong = [f"{key}={value}" for key, value in kept.items() if not isinstance(value, known.get(key, ())) or isinstance(value, bool)]
    wrong += [f"no {entry.name}" for entry in fields(ModelConfig) if entry.default is MISSING and entry.name not in kept]
    got = f"{where} keeps a model with {', '.join(wrong)}"
    require(not wrong, got, f"{', '.join(known)} as this version has them", "use the version of Crystal that wrote it")
    return ModelConfig(**kept)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> dict[str, int]:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}

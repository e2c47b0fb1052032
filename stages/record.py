"""What a run keeps about itself: where and how it runs, and the settings that decide its numbers."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crystal.config import Config, require
from crystal.model.cost import parameters
from crystal.runlog import read_json, write_json

PACKAGES = ("torch", "numpy", "tokenizers", "mup", "hydra-core")


def write_run_record(path: Path, config: Config, facts: dict[str, Any], command: list[str]) -> None:
    """Write run.json: date, command, versions, device and model. The date of the first start stays."""
    write_json(path, {
        "name": path.parent.name,
        "created": read_json(path, {}).get("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        "command": command,
        "crystal": importlib.metadata.version("crystal-trainer"),
        "git": _git_commit(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        **facts,
        "model": asdict(config.model),
        "n_parameters": sum(parameters(config.model).values()),
        "seq_len": config.scale.seq_len,
        "batch_rows": config.scale.batch_rows,
        "scale": config.scale.name,
    })  # fmt: skip


def _git_commit() -> str | None:
    """The commit of the source, with "+" where files have changed; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def refuse_other_numbers(path: Path, numbers: dict[str, Any]) -> None:
    """Keep the settings that decide the numbers at the first start; later raise UserError for different ones, naming the keys."""
    before, now = read_json(path, None), json.loads(json.dumps(numbers))
    if before is None:
        return write_json(path, now)
    different = [f"{key}={ours} (there: {theirs})" for key, theirs, ours in differences(before, now)]
    got = f"{path.parent} was started with other settings: {', '.join(different[:4])}"
    return require(not different, got, "the same settings", "give another run.dir, or delete that folder")


def refuse_other_data(before: dict[str, Any], now: dict[str, Any], *, where: str) -> None:
    """Raise UserError where a checkpoint was trained on other data than the loader gives, naming what differs."""
    different = [key for key, _, _ in differences(before, json.loads(json.dumps(now)))]
    got = f"{where} was trained on other data ({', '.join(different[:4])} differ)"
    require(not different, got, "the data it was trained on", "prepare that data again, or start in another run.dir")


def note_other_bits(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say when device, dtype, threads or ranks are not what they were: then the bits are not, either."""
    different = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    if different:
        print(f"  going on with {', '.join(different)}: not bit for bit as it would have been")


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) wherever two JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield key, before, now

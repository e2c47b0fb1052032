"""What a run keeps about itself: where and how it runs, and the settings that decide its numbers."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crystal import checkpoint
from crystal.config import Config, ModelConfig, UserError, require
from crystal.model.cost import parameters
from crystal.runlog import flattened, read_json, write_json
from crystal.stageconfig import StageConfig

BEFORE_THE_CHOICE = {"attention": "full", "changes": []}  # what a run had that does not say it
PACKAGES = ("torch", "numpy", "tokenizers", "mup", "hydra-core")


def write_run_record(run_dir: Path, config: Config, facts: dict[str, Any], manifest: dict[str, Any], command: list[str]) -> None:
    """Write run.json (date of the first start, command, versions, device, model) and data.json (the manifest without its shards)."""
    sides = ("train", "valid")
    short = {side: {name: entry | {"shards": len(entry["shards"])} for name, entry in manifest[side].items()} for side in sides}
    write_json(run_dir / "data.json", manifest | short)
    path = run_dir / "run.json"
    write_json(path, {
        "name": run_dir.name,
        "created": read_json(path, {}).get("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        "command": command,
        "crystal": importlib.metadata.version("crystal-trainer"),
        "git": git_commit(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        **facts,
        "model": asdict(config.model),
        "n_parameters": sum(parameters(config.model).values()),
        "seq_len": config.scale.seq_len,
        "batch_rows": config.scale.batch_rows,
        "scale": config.scale.name,
    })  # fmt: skip


def git_commit() -> str | None:
    """The commit of the source, with "+" where files have changed; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def run_numbers(config: Config) -> dict[str, Any]:
    """The settings that decide a run's numbers, but for those of its stages."""
    scale = {key: getattr(config.scale, key) for key in ("tokens", "batch_rows", "seq_len", "lr_factor")}
    chosen = {"attention": config.attention, "data": config.data.name, "seed": config.run.seed}
    return {"model": asdict(config.model), "scale": scale, "optim": asdict(config.optim)} | chosen


def stage_numbers(config: Config, stage: StageConfig) -> dict[str, Any]:
    """The settings that decide a stage's numbers."""
    return asdict(stage) | {"init_from": config.init_from}


def refuse_bad_start(config: Config) -> None:
    """Raise UserError, before any data is read, where the run was started otherwise or a stage has nothing to start from."""
    run_dir = Path(config.run.dir)
    refuse_other_numbers(run_dir / "numbers.json", run_numbers(config))
    complete = completed_stages(config)
    for name, stage in config.stages.items():
        refuse_other_numbers(run_dir / f"stage{name}" / "numbers.json", stage_numbers(config, stage))
        made_first = config.init_from is None and stage.starts_from in config.stages.keys() - complete
        if name not in complete and not made_first:
            source = source_of(config, stage)
            if source is not None:
                refuse_other_model(source, config.model)
                refuse_no_optimizer(source, stage)


def completed_stages(config: Config) -> set[str]:
    """Names of the stages that the run directory holds whole."""
    return {path.parent.name.removeprefix("stage") for path in Path(config.run.dir).glob("stage*/summary.json")}


def source_of(config: Config, stage: StageConfig) -> Path | None:
    """The checkpoint a stage begins from: init_from, or the last one of the stage before it; None for fresh weights."""
    if config.init_from is not None:
        return Path(config.init_from)
    if stage.starts_from is None:
        return None
    folder = Path(config.run.dir) / f"stage{stage.starts_from}"
    last = checkpoint.latest(folder / "checkpoints")
    if last is None or not (folder / "summary.json").exists():
        before = stage.starts_from
        raise UserError(
            f"stage {stage.name} starts from stage {before}, which is not complete in {config.run.dir}; expected a checkpoint in "
            f"{folder}/checkpoints; run stage={before} first (or stage=all), or give init_from=CHECKPOINT"
        )
    return last


def refuse_other_model(source: Path, model: ModelConfig) -> None:
    """Raise UserError where the checkpoint `source` is not whole, or is of another model."""
    theirs, ours = asdict(checkpoint.read_model(source)), asdict(model)
    wrong = [f"model.{key}={theirs[key]} (configured: {ours[key]})" for key in ours if key != "name" and ours[key] != theirs[key]]
    require(not wrong, f"{source} has {', '.join(wrong)}", "the configured model", "choose that model or another checkpoint")


def refuse_no_optimizer(source: Path, stage: StageConfig) -> None:
    """Raise UserError where the stage carries on an optimizer that the checkpoint `source` has not, because it was imported."""
    bare = stage.optimizer == "carry" and checkpoint.read_state(source).get("weights_only", False)
    got = f"stages.{stage.name}.optimizer=carry from {source}, which was imported"
    require(not bare, got, "a checkpoint with the optimizer's state", f"give stages.{stage.name}.optimizer=fresh")


def refuse_other_tokenizer(source: Path, sha256: str) -> None:
    """Raise UserError where the checkpoint `source` was trained with another tokenizer than the one of this sha256."""
    theirs = hashlib.sha256((source / "tokenizer.json").read_bytes()).hexdigest()
    got = f"{source} was trained with another tokenizer (sha256 {theirs[:12]})"
    require(
        theirs == sha256,
        got,
        f"the one of the prepared data ({sha256[:12]})",
        "prepare with data.tokenizer of that checkpoint, or train anew",
    )


@contextmanager
def only_process(run_dir: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the run directory; where another process does, UserError or wait. The lock goes with its process, however it ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(
                f"another process is training in {run_dir}; expected to be alone; wait for it, or give another run.dir"
            ) from error
        yield


def refuse_other_numbers(path: Path, numbers: dict[str, Any]) -> None:
    """Raise UserError, naming the keys, where `path` holds other settings; nothing is wrong where it is not there.

    A change of the mixture at a step that its stage has not reached may come, go and be another one.
    """
    before = {key: value for key, value in (BEFORE_THE_CHOICE | read_json(path, numbers)).items() if key in numbers}
    if "model" in before:
        before["model"] = asdict(checkpoint.kept_model(before["model"], path))
    if "changes" in before:
        before["fim"] = {"style": "lossless"} | before["fim"]  # the only one that there was
        n_steps = trained_steps(path.parent)
        before, numbers = (
            kept | {"changes": [change for change in kept["changes"] if change["from_step"] < n_steps]} for kept in (before, numbers)
        )
    different = [f"{key}={ours} (there: {theirs})" for key, theirs, ours in differences(before, numbers)]
    got = f"{path.parent} was started with other settings: {', '.join(different[:4])}"
    require(not different, got, "the same settings", "give another run.dir, or delete that folder")


def trained_steps(stage_dir: Path) -> int:
    """Steps of a stage that its directory holds: all, or those up to its newest checkpoint."""
    last = checkpoint.latest(stage_dir / "checkpoints")
    return int(read_json(stage_dir / "summary.json", {"steps": 0 if last is None else last.name.removeprefix("step-")})["steps"])


def keep_numbers(path: Path, numbers: dict[str, Any]) -> None:
    """Write the settings at the first start, and refuse other ones later."""
    refuse_other_numbers(path, numbers)
    write_json(path, numbers)


def refuse_other_data(before: dict[str, Any], now: dict[str, Any], *, n_samples: int, where: str) -> None:
    """Raise UserError where a checkpoint's first `n_samples` were not those that the loader gives, naming what differs."""
    before, now = (
        data | {"changes": [change for change in data.get("changes", []) if change["first_sample"] < n_samples]} for data in (before, now)
    )
    different = [key for key, _, _ in differences(before, now)]
    got = f"{where} was trained on other data ({', '.join(different[:4])} differ)"
    require(not different, got, "the data it was trained on", "prepare that data again, or start in another run.dir")


def note_other_bits(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say when device, dtype, threads or ranks are not what they were: then the bits are not, either."""
    different = [f"{key} {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value]
    if different:
        print(f"  going on with {', '.join(different)}: not bit for bit as it would have been")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) wherever what a JSON file holds differs from what would be written to it."""
    there, here = dict(flattened(before)), dict(flattened(json.loads(json.dumps(now))))
    found = [(key, there.get(key), here.get(key)) for key in sorted(there.keys() | here.keys())]
    return [(key, theirs, ours) for key, theirs, ours in found if theirs != ours]

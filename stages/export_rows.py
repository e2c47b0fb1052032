"""task=export format=hdf5 and format=hdf5-stream: the rows of a stage as HDF5 files, with what ModelZoo's params.yaml says of them.

The surprise: ModelZoo mixes folders in an order of its own. Only the stream, which it does not mix, is Crystal's order.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from crystal import checkpoint
from crystal.config import Config, require
from crystal.data.hdf5_export import Folder, by_entry, estimated_bytes, in_order, write_folders
from crystal.data.loader import Loader
from crystal.data.shards import Prepared
from stages.loading import loader_of
from stages.out import new_out
from stages.recipes import recipe

HEAD = """\
# Made by Crystal (task=export): stage {stage}, seed {seed}, of data {fingerprint}; {n_steps:,} steps.
# For ModelZoo 1.x. In 2.x the same keys stand under trainer.fit.train_dataloader and trainer.fit.val_dataloader.
# Each data_dir is where the folder was written; mend them where it is moved.
"""


def export_rows(config: Config) -> None:
    """Write the rows of the one configured stage, from the prepared data in data.out, to config.out."""
    out = new_out(config, "folder")
    loader, n_samples = _loader(config)
    folders = (in_order if config.format == "hdf5-stream" else by_entry)(loader, n_samples)
    sizes = [estimated_bytes(loader, folder) for folder in folders]
    if config.dry_run:
        for folder, size in zip(folders, sizes, strict=True):
            print(f"{folder.name}: {folder.n_rows:,} rows in {folder.n_files:,} files, about {size / 1e6:,.1f} MB")
        print(f"would export about {sum(sizes) / 1e9:,.3f} GB into {out}")
        return
    room = shutil.disk_usage(next(path for path in out.absolute().parents if path.exists())).free
    got = f"about {sum(sizes) / 1e9:,.3f} GB to export and {room / 1e9:,.3f} GB free for {out}"
    require(room > sum(sizes), got, "room for all of it", "free some, or give another out")
    with checkpoint.whole(out) as work:
        size = write_folders(loader, folders, work, lambda line: print(line, file=sys.stderr))
        shutil.copyfile(loader.prepared.tokenizer_path, work / "tokenizer.json")
        (work / "params.yaml").write_text(_params(config, loader, n_samples, folders, out.absolute()), encoding="utf-8")
    print(f"exported stage {', '.join(config.stages)}, {sum(folder.n_rows for folder in folders):,} rows, {size / 1e9:,.3f} GB: {out}")


def _loader(config: Config) -> tuple[Loader, int]:
    """The stage's loader and how many samples it trains on."""
    names, how = ", ".join(config.stages), f"format={config.format}"
    require(len(config.stages) == 1, f"{how} of the stages {names}", "one stage an export", "name it with stage=1, 2 or 3")
    (stage,) = config.stages.values()
    got = f"{how} with attention=document"
    require(config.attention == "full", got, "attention=full: the files do not say where documents begin", "mend attention")
    changes = [change.from_step for change in stage.changes] if config.format == "hdf5" else []
    got = f"{how} of stage {names}, whose mixture changes at step {', '.join(map(str, changes))}"
    require(not changes, got, "one mixture, as in a params.yaml", "give format=hdf5-stream")
    prepared, made = Prepared.open(config.data.out, verify=config.data.verify), recipe(stage, config.scale)
    got = f"{config.data.out} has rows of {prepared.seq_len} tokens"
    require(prepared.seq_len == config.scale.seq_len, got, f"scale.seq_len={config.scale.seq_len}", "mend scale.seq_len or data.out")
    return loader_of(config, prepared, made)[0], made.n_steps * config.scale.batch_rows


def _params(config: Config, loader: Loader, n_samples: int, folders: Sequence[Folder], out: Path) -> str:
    """train_input and eval_input of a params.yaml."""
    reader = {
        "data_processor": "GptHDF5MapDataProcessor", "vocab_size": config.model.vocab_size, "num_workers": 1, "prefetch_factor": 10,
        "persistent_workers": True, "use_worker_cache": False,
    }  # fmt: skip
    stream = config.format == "hdf5-stream"
    mixture = [{"data_dir": str(out / "train" / entry.name), "weight": entry.weight} for entry in loader.entries]
    rows: dict[str, Any] = {"data_dir": str(out / "train")} if stream else {"mixture": mixture}
    train = {**rows, "batch_size": loader.batch_rows, "shuffle": not stream, "shuffle_seed": loader.seed, "repeat": True}
    made, held_out = {"train_input": reader | train}, [folder for folder in folders if folder.name.startswith("valid/")]
    if held_out:  # in one batch, for what is left of a last one is dropped
        n_rows = sum(folder.n_rows for folder in held_out)
        valid = {"data_dir": [str(out / folder.name) for folder in held_out], "batch_size": n_rows, "shuffle": False, "repeat": False}
        made["eval_input"] = reader | valid
    about = {"seed": loader.seed, "fingerprint": loader.fingerprint()[:12], "n_steps": n_samples // loader.batch_rows}
    return HEAD.format(stage=", ".join(config.stages), **about) + OmegaConf.to_yaml(made, sort_keys=True)

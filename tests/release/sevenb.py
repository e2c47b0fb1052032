"""CrystalCoder's own size there and back, as a stock model, and with its optimizer as a Cerebras checkpoint and safetensors:
`python -m tests.release.sevenb [FOLDER]` prints peak memory and seconds.

The surprise: its weights are holes in sparse files. Every byte is read, converted and summed all the same, but what is zero is not
written, so that the disk holds it. Needs 30 GB of disk at most; the folder (default: a temporary one) is emptied again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crystal import checkpoint
from crystal.checkpoint import COMPLETE
from crystal.config import ModelConfig
from crystal.data.tokenizer import train_tokenizer
from crystal.mdl import Lazy
from crystal.model.cost import parameters
from crystal.release import shards
from crystal.release.layout import crystal_shapes, published_config, published_shapes

CONFIG = ModelConfig("7b", d_model=4096, n_layers=32, n_heads=32, d_ffn=10922, vocab_size=32032, seq_len=2048)
LIMIT_GB = 8.0


def write_sparse(folder: Path, config: ModelConfig, *, n_shards: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """The published layout with weights that are all zero, as sparse pytorch_model-*.bin files, and a tokenizer."""
    folder.mkdir()
    shapes = published_shapes(config)
    per_shard = -(-len(shapes) // n_shards)
    placed = {name: f"pytorch_model-{i // per_shard + 1:05d}-of-{n_shards:05d}.bin" for i, name in enumerate(shapes)}
    for file in sorted(set(placed.values())):
        with FakeTensorMode():
            tensors = {name: torch.empty(shapes[name], dtype=dtype) for name in shapes if placed[name] == file}
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(tensors, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    hf = {key: value for key, value in published_config(config, dtype="bfloat16").items() if key != "crystal"}
    (folder / "config.json").write_text(json.dumps(hf))
    train_tokenizer([Path(__file__).read_text()], 320, folder / "tokenizer.json")


def write_sparse_checkpoint(out: Path, config: ModelConfig, *, tokenizer: Path) -> None:
    """A checkpoint with the optimizer, after one update; all but that number is zero."""

    def made(shape: tuple[int, ...]) -> Lazy:
        return Lazy(torch.Size(shape), torch.float32, lambda: torch.from_numpy((np.zeros if shape else np.ones)(shape, np.float32)))

    shapes = {name: tuple(shape) for name, shape in crystal_shapes(config).items()}
    adamw = {name: {"step": made(()), "exp_avg": made(shape), "exp_avg_sq": made(shape)} for name, shape in shapes.items()}
    with checkpoint.whole(out) as folder:
        shards.write_saved(folder / "weights.pt", {name: made(shape) for name, shape in shapes.items()})
        shards.write_saved(folder / "optimizer.pt", {"step_count": 1, "adamw": adamw})
        checkpoint.seal(folder, {"step": 1, "model": asdict(config)}, tokenizer=tokenizer)


def measured(*arguments: str) -> tuple[float, str]:
    """Peak resident memory in GB (mapped pages of files count) of one command line, and what it took, in words."""
    t0 = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "crystal", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    peak_gb = usage.ru_maxrss * 1024 / 1e9
    return peak_gb, f"peak {peak_gb:.2f} GB, {time.monotonic() - t0:.0f} s, of the processor {usage.ru_utime + usage.ru_stime:.0f} s"


def main(root: Path) -> None:
    write_sparse(root / "published", CONFIG, n_shards=10)
    write_sparse_checkpoint(root / "trained", CONFIG, tokenizer=root / "published" / "tokenizer.json")
    print(f"{sum(parameters(CONFIG).values()):,} parameters")
    steps = [
        ("import", f"source={root}/published", f"out={root}/checkpoint"),
        ("export", f"checkpoint={root}/checkpoint", "format=crystalcoder", f"out={root}/again"),
        ("import", f"source={root}/again", f"out={root}/back"),
        ("export", f"checkpoint={root}/checkpoint", "format=hf", "dtype=bfloat16", f"out={root}/stock"),
        ("export", f"checkpoint={root}/trained", "format=cerebras", f"out={root}/cerebras"),
        ("export", f"checkpoint={root}/cerebras", "format=crystal", f"out={root}/crystal"),
        ("export", f"checkpoint={root}/cerebras", "format=safetensors", f"out={root}/safetensors"),
        ("import", f"source={root}/safetensors", f"out={root}/imported"),
    ]
    for task, *arguments in steps:
        peak_gb, taken = measured(f"task={task}", *arguments)
        print(f"task={task} {' '.join(arguments)}: {taken}", flush=True)
        assert peak_gb < LIMIT_GB
    sums = {name: json.loads((root / name / COMPLETE).read_text()) for name in ("checkpoint", "back", "trained", "crystal", "imported")}
    assert sums["checkpoint"]["weights.pt"] == sums["back"]["weights.pt"], "the same bytes, by their checksums"
    for name in ("crystal", "imported"):
        assert sums[name]["optimizer.pt"]["bytes"] == sums["trained"]["optimizer.pt"]["bytes"]
    assert json.loads((root / "back" / "state.json").read_text())["model"] == asdict(CONFIG) | {"name": "published"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        main(Path(folder))

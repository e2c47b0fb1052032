"""CrystalCoder's own size there and back, and as a stock model: `python -m tests.release.sevenb [FOLDER]` prints peak memory and seconds.

The surprise: its 13 GB of weights are holes in sparse files. Every byte is read, converted and summed all the same, but what is zero is
not written, so that the disk holds it. Needs 30 GB of disk at most; the folder (default: a temporary one) is emptied again.
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

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from crystal.checkpoint import COMPLETE
from crystal.config import ModelConfig
from crystal.data.tokenizer import train_tokenizer
from crystal.model.cost import parameters
from crystal.release.layout import published_config, published_shapes

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
    print(f"{sum(parameters(CONFIG).values()):,} parameters")
    steps = [
        ("import", f"source={root}/published", f"out={root}/checkpoint"),
        ("export", f"checkpoint={root}/checkpoint", "format=crystalcoder", f"out={root}/again"),
        ("import", f"source={root}/again", f"out={root}/back"),
        ("export", f"checkpoint={root}/checkpoint", "format=hf", "dtype=bfloat16", f"out={root}/stock"),
    ]
    for task, *arguments in steps:
        peak_gb, taken = measured(f"task={task}", *arguments)
        print(f"task={task} {' '.join(arguments)}: {taken}", flush=True)
        assert peak_gb < LIMIT_GB
    there, back = (json.loads((root / name / COMPLETE).read_text())["weights.pt"] for name in ("checkpoint", "back"))
    assert there == back, "the same bytes, by their checksums"
    assert json.loads((root / "back" / "state.json").read_text())["model"] == asdict(CONFIG) | {"name": "published"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        main(Path(folder))

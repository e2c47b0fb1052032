"""How far an export's logits are from the checkpoint's own, by format and dtype: `python -m tests.release.precision CHECKPOINT`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from crystal.generate import Completer
from crystal.release.hf import export_crystalcoder, export_stock

EXPORTS = {"crystalcoder": export_crystalcoder, "hf": export_stock}


def loaded(folder: Path, *, dtype: str = "float32"):
    """The model in an exported folder, by transformers."""
    own_code = "auto_map" in json.loads((folder / "config.json").read_text())
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own_code, dtype=getattr(torch, dtype)).eval()


@torch.no_grad()
def logit_errors(checkpoint: Path, out: Path, *, dtype: str) -> dict[str, tuple[float, float]]:
    """By format: root mean square of the logits' error relative to the logits', and the largest error; on random tokens."""
    completer = Completer.load(checkpoint, device="cpu")
    shape = 2, min(512, completer.config.seq_len)
    ids = torch.randint(completer.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    expected, errors = completer.model(ids), {}
    for kind, export in EXPORTS.items():
        folder = out / f"{kind}-{dtype}"
        export(checkpoint, folder, dtype=dtype)
        error = loaded(folder, dtype=dtype)(ids).logits.float() - expected
        errors[kind] = ((error.square().mean() / expected.square().mean()).sqrt().item(), error.abs().max().item())
    return errors


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "bfloat16"):
            for kind, (relative, largest) in logit_errors(Path(sys.argv[1]), Path(folder), dtype=dtype).items():
                print(f"format={kind} dtype={dtype}: relative {relative:.1e}, largest {largest:.1e}")

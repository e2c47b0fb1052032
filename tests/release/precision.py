"""How far an export's logits are from the checkpoint's own, by format and dtype: `python -m tests.release.precision [CHECKPOINT]`.

Without a checkpoint: of random models of three widths, the last CrystalCoder's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from crystal.config import ModelConfig
from crystal.data.tokenizer import train_tokenizer
from crystal.generate import Completer
from crystal.release.hf import export_crystalcoder, export_stock
from tests.release.conftest import write_random

EXPORTS = {"crystalcoder": export_crystalcoder, "hf": export_stock}


def loaded(folder: Path, kind: str, *, dtype: str = "float32"):
    """The model in a folder of format=kind, by transformers; format=hf must do without the folder's own code."""
    from transformers import AutoModelForCausalLM  # not before conftest has looked at torchvision

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=kind == "crystalcoder", dtype=getattr(torch, dtype)).eval()


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
        error = loaded(folder, kind, dtype=dtype)(ids).logits.float() - expected
        errors[kind] = ((error.square().mean() / expected.square().mean()).sqrt().item(), error.abs().max().item())
    return errors


def report(checkpoint: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        for dtype in ("float32", "bfloat16"):
            for kind, (relative, largest) in logit_errors(checkpoint, Path(out), dtype=dtype).items():
                print(f"  format={kind} dtype={dtype}: relative {relative:.1e}, max |difference| {largest:.1e}", flush=True)


def report_random(d_model: int, n_layers: int) -> None:
    shape = dict(n_heads=d_model // 128, d_ffn=8 * d_model // 3, vocab_size=1024, seq_len=512)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, checkpoint = Path(folder) / "tokenizer.json", Path(folder) / "checkpoint"
        train_tokenizer([Path(__file__).read_text()], 320, tokenizer)
        write_random(checkpoint, ModelConfig("random", d_model, n_layers, **shape), tokenizer)
        print(f"random, {d_model} x {n_layers} layers")
        report(checkpoint)


if __name__ == "__main__":
    for checkpoint in sys.argv[1:]:
        print(checkpoint)
        report(Path(checkpoint))
    if not sys.argv[1:]:
        for d_model, n_layers in ((256, 4), (1024, 8), (4096, 1)):
            report_random(d_model, n_layers)

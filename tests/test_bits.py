"""Bits per byte against the sums over the logits themselves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from crystal.bits import bits_of_continuations, bits_of_rows
from crystal.data.shards import Prepared
from crystal.generate import Completer


@pytest.fixture(scope="module")
def completer(trained: Path) -> Completer:
    return Completer.load(sorted((trained / "stage1" / "checkpoints").iterdir())[-1], device="cpu")


@torch.no_grad()
def nats(completer: Completer, ids: list[int], first: int) -> float:
    log_p = completer.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    return -sum(float(log_p[at - 1, ids[at]]) for at in range(first, len(ids)))


@pytest.mark.parametrize(
    ("prompt", "continuation"), [("def f(x):\n", "    return x\n"), ("ka", "per ing"), ("ka ", "to"), ("to " * 60, "mi")]
)
def test_continuations_are_their_own_tokens_alone(completer: Completer, prompt: str, continuation: str) -> None:
    """The last prompt does not fit into the model's 64 tokens."""
    begun, whole = ([completer.tokenizer.eos_id, *completer.tokenizer.encode(text).tolist()] for text in (prompt, prompt + continuation))
    n_new = len(whole) - next((at for at, (one, other) in enumerate(zip(begun, whole, strict=False)) if one != other), len(begun))
    kept = whole[-completer.config.seq_len - 1 :]
    expected = nats(completer, kept, len(kept) - n_new) / math.log(2) / len(continuation)
    assert bits_of_continuations(completer, [(prompt, continuation)])["bits_per_byte"] == pytest.approx(expected, rel=1e-4)


def test_rows_are_those_held_out(completer: Completer, tiny_overrides: list[str]) -> None:
    prepared = Prepared.open(dict(override.split("=") for override in tiny_overrides)["data.out"], verify=False)
    rows = prepared.valid_rows("starcoder/python")
    found = bits_of_rows(completer, prepared, "starcoder/python", attention="full")
    texts = [row[row != prepared.fim_ids.pad].tolist() for row in rows[np.arange(len(rows))]]  # padding does not count
    assert found["rows"] == len(rows) > 0
    assert found["loss"] == pytest.approx(sum(nats(completer, ids, 1) for ids in texts) / sum(len(ids) - 1 for ids in texts), rel=1e-4)
    within = bits_of_rows(completer, prepared, "starcoder/python", attention="document")
    assert within["bits_per_byte"] != found["bits_per_byte"]

"""Bits per byte of a model on text that it is shown: of the held-out rows of a source, and of continuations behind their prompts.

The surprise: bits per byte compare across tokenizers, nats per token do not; and a token that spans the end of a prompt counts as the
continuation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import torch

from crystal.data.loader import documents_of, to_batch
from crystal.data.shards import Prepared
from crystal.generate import Completer

BATCH_ROWS = 8


@torch.no_grad()
def bits_of_rows(completer: Completer, prepared: Prepared, source: str, *, attention: str) -> dict[str, Any]:
    """Nats per token of the held-out rows of `source`, and with the tokens and bytes of its documents bits per byte.

    attention: "full" or "document", as the model was trained. The source has rows, no longer than the model's seq_len.
    """
    view, counts, device = prepared.valid_rows(source), prepared.valid[source], completer.model.embed.weight.device
    nats, labels = 0.0, 0.0
    for first in range(0, len(view), BATCH_ROWS):
        batch = to_batch(view[np.arange(first, min(first + BATCH_ROWS, len(view)))], prepared.fim_ids.pad)
        documents = documents_of(batch.inputs_BT, prepared.eos_id) if attention == "document" else None
        arrays = (batch.inputs_BT, batch.labels_BT, batch.mask_BT, documents)
        nats += float(completer.model(*(None if array is None else torch.from_numpy(array).to(device) for array in arrays)))
        labels += float(batch.mask_BT.sum())
    loss = nats / labels
    return {"rows": len(view), "loss": loss, "bits_per_byte": loss / log(2) * counts["tokens"] / counts["text_bytes"]}


@torch.no_grad()
def bits_of_continuations(completer: Completer, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Bits per byte of the second texts of `pairs`, each behind its first; of what is too long for the model, its end."""
    tokenizer, device, bits, n_bytes = completer.tokenizer, completer.model.embed.weight.device, 0.0, 0
    for prompt, continuation in pairs:
        begun, whole = ([tokenizer.eos_id, *tokenizer.encode(text).tolist()] for text in (prompt, prompt + continuation))
        same = next((at for at, (one, other) in enumerate(zip(begun, whole, strict=False)) if one != other), len(begun))
        ids_1T = torch.tensor([whole[-completer.config.seq_len - 1 :]], device=device)
        mask_1T = torch.zeros(1, ids_1T.shape[1] - 1, device=device)
        mask_1T[:, same - len(whole) :] = 1
        bits += float(completer.model(ids_1T[:, :-1], ids_1T[:, 1:], mask_1T)) / log(2)
        n_bytes += len(continuation.encode())
    return {"problems": len(pairs), "bits_per_byte": bits / n_bytes}

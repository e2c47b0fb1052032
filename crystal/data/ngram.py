"""Unigram and bigram losses: what counting reaches on the labels that the model is scored on.

Unigram: add-one. Bigram: interpolated Kneser-Ney (Ney, Essen and Kneser 1994; Chen and Goodman 1999), the discount
D = n1 / (n1 + 2 n2) from the counts, backed by how many words a token follows, itself discounted and backed by uniform.
The surprise: labels are those of a batch, so a row's first token is context, never a label.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from crystal.data.loader import to_batch

Blocks = Iterable[np.ndarray]  # rows as `to_batch` takes them


def ngram_losses(train: Blocks, valid: Blocks, *, vocab_size: int, pad_id: int, max_train_tokens: int) -> dict[str, Any]:
    """Mean loss in nats per label that counts; None where there is no such label.

    {"unigram": {"loss"}, "bigram": {"loss"}, "train_tokens", "valid_tokens"}, the counts in labels. The n-grams are
    counted in the first `max_train_tokens` labels of the `train` rows, at about 24 bytes of memory each.
    """
    trained = _pairs(train, vocab_size, pad_id, max_train_tokens)
    held_out = _pairs(valid, vocab_size, pad_id, None)
    losses = {"unigram": _unigram(trained, held_out, vocab_size), "bigram": _bigram(trained, held_out, vocab_size)}
    return {
        **{name: {"loss": float(-np.log(p).mean()) if len(p) else None} for name, p in losses.items()},
        "train_tokens": len(trained),
        "valid_tokens": len(held_out),
    }


def _pairs(blocks: Blocks, vocab_size: int, pad_id: int, limit: int | None) -> np.ndarray:
    """Codes previous * vocab_size + label of every label that counts, in order."""
    found, n = [np.empty(0, np.int64)], 0
    for block in blocks:
        if limit is not None and n >= limit:
            break
        batch = to_batch(block, pad_id)
        codes = (batch.inputs_BT * vocab_size + batch.labels_BT)[batch.mask_BT > 0]
        found.append(codes)
        n += len(codes)
    return np.concatenate(found)[:limit]


def _unigram(train: np.ndarray, valid: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.bincount(train % vocab_size, minlength=vocab_size)
    probability: np.ndarray = (counts + 1) / (counts.sum() + vocab_size)
    return probability[valid % vocab_size]


def _bigram(train: np.ndarray, valid: np.ndarray, vocab_size: int) -> np.ndarray:
    pairs, counts = np.unique(train, return_counts=True)
    discount = _discount(counts)
    after = np.bincount(pairs % vocab_size, minlength=vocab_size)  # distinct tokens before each label
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size)  # distinct labels behind each token
    total = np.bincount(pairs // vocab_size, weights=counts, minlength=vocab_size)
    lower = _discounted(after, vocab_size)
    place = np.minimum(np.searchsorted(pairs, valid), max(0, len(pairs) - 1))
    seen = np.where(pairs[place] == valid, counts[place], 0) if len(pairs) else np.zeros(len(valid))
    previous, label = valid // vocab_size, valid % vocab_size
    n = np.maximum(total[previous], 1)
    backed = np.where(total[previous] > 0, discount * followers[previous] / n, 1.0)
    result: np.ndarray = np.maximum(seen - discount, 0) / n + backed * lower[label]
    return result


def _discounted(counts: np.ndarray, vocab_size: int) -> np.ndarray:
    """Absolute discounting of counts (V,), the mass spread evenly: sums to 1."""
    discount, total = _discount(counts[counts > 0]), max(1, int(counts.sum()))
    spread = discount * (counts > 0).sum() / total if counts.any() else 1.0
    result: np.ndarray = np.maximum(counts - discount, 0) / total + spread / vocab_size
    return result


def _discount(counts: np.ndarray) -> float:
    """Ney's estimate from the counts of counts; kept inside (0, 1) so that no probability is 0."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return min(0.95, max(0.05, once / max(1, once + 2 * twice)))

"""A keyed permutation of [0, n) computed element by element: no array of n, no state.

A Feistel network over the smallest power of two >= n, with cycle walking for what falls outside n (Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002). The surprise: the halves may differ by a bit; then they swap
widths each round.
"""

from __future__ import annotations

import hashlib

import numpy as np

ROUNDS = 6  # even, so that the halves' widths are back in place at the end


def key_of(*parts: object) -> int:
    """64 bits from any printable parts, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(positions: np.ndarray, n: int, *, key: int, epochs: np.ndarray) -> np.ndarray:
    """For each position in [0, n), its image under the permutation of (key, epoch); int64 arrays of equal shape."""
    if n <= 1:
        return np.zeros_like(positions)
    bits = max(2, (n - 1).bit_length())
    epoch_keys = _mix(epochs.astype(np.uint64) ^ np.uint64(key))
    values = _feistel(positions.astype(np.uint64), bits, epoch_keys)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _feistel(values[outside], bits, epoch_keys[outside])
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = values >> np.uint64(right_bits), values & np.uint64((1 << right_bits) - 1)
    for number in range(ROUNDS):
        mask = np.uint64((1 << left_bits) - 1)
        noise = _mix(_mix(keys + np.uint64(number)) ^ right)
        left, right = right, (left ^ noise) & mask
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's step (Steele, Lea and Flood 2014): a bijection of 64-bit words; arithmetic wraps."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

"""A keyed permutation of [0, n) and its inverse, computed element by element: no array of n, no state.

A Feistel network over pairs of [0, a) x [0, b) with a b just above n, with cycle walking for what falls outside n (Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002). The surprise: the halves are added, not XORed, and so need not be powers of two: less than
1 in sqrt(n) falls outside, and walks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


def key_of(*parts: object) -> int:
    """64 bits from any printable parts, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(positions: np.ndarray, n: np.ndarray, *, keys: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """For each position in [0, n), its image under the permutation of (key, epoch): int64; `keys` uint64, all of one shape."""
    return _walked(positions, n, keys, epochs, range(ROUNDS))


def position_of(images: np.ndarray, n: np.ndarray, *, keys: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """The inverse of `permute`: for each image, its position."""
    return _walked(images, n, keys, epochs, range(ROUNDS)[::-1])


def _walked(values: np.ndarray, n: np.ndarray, keys: np.ndarray, epochs: np.ndarray, rounds: Sequence[int]) -> np.ndarray:
    """Through the network until back in [0, n): a permutation of the pairs walked so is one of [0, n)."""
    a = np.ceil(np.sqrt(n)).astype(np.uint64)
    b, n = -(-n // a.astype(np.int64)).astype(np.uint64), n.astype(np.uint64)
    keys = mix(epochs.astype(np.uint64) ^ keys)
    values = _network(values.astype(np.uint64), a, b, keys, rounds)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _network(values[outside], a[outside], b[outside], keys[outside], rounds)
        outside = outside[values[outside] >= n[outside]]
    return values.astype(np.int64)


def _network(values: np.ndarray, a: np.ndarray, b: np.ndarray, keys: np.ndarray, rounds: Sequence[int]) -> np.ndarray:
    """Even rounds add to the half in [0, a) what the other decides, odd ones the reverse; `rounds` backwards subtract it again."""
    left, right = np.divmod(values, b)
    added = rounds[0] == 0
    for number in rounds:
        half, other, size = (right, left, b) if number % 2 else (left, right, a)
        noise = mix(keys + other + np.uint64(number << 40))
        noise = ((noise >> np.uint64(32)) * size) >> np.uint64(32)  # in [0, size)
        # Unsigned words wrap: the one of the two that is in [0, size) is the lesser.
        half = np.minimum(half + noise, half + noise - size) if added else np.minimum(half - noise, half - noise + size)
        left, right = (left, half) if number % 2 else (half, right)
    return left * b + right


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's step (Steele, Lea and Flood 2014): a bijection of 64-bit words; arithmetic wraps."""
    values = values + np.uint64(GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

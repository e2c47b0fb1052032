"""The draw of a token: greedy, or by temperature and nucleus, from a number that the sequence's seed and the token's place decide.

The surprise: the nucleus is found without sorting the vocabulary. All tokens of less than (1 - top_p) / V together hold less than 1 - top_p
of the probability, so none of them is in it; only the few that are left are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crystal.data.permute import mix

LOWEST = np.float32(-80.0)  # of a logit beside the highest: e to the less is denormal, which takes a processor many times as long


def uniforms(seeds: Sequence[int], places: Sequence[int]) -> np.ndarray:
    """For token places[i] of a sequence with seeds[i], whole numbers modulo 2^64: splitmix64 of both, in [0, 1), a multiple of 2^-52."""
    words = mix(mix(np.array([seed % 2**64 for seed in seeds], np.uint64)) + np.array(places, np.uint64))
    return (words >> np.uint64(12)) * 2.0**-52


def draw(logits_V: np.ndarray, u: float, *, temperature: float, top_p: float) -> int:
    """The token that u in [0, 1) draws from float32 logits. temperature 0: the likeliest, of equals the first; so also where one is NaN.

    Otherwise from the smallest set of likeliest tokens that holds top_p of the probability (Holtzman et al. 2020); of equally likely
    tokens the first go in first.
    """
    likeliest = int(logits_V.argmax())
    if temperature == 0 or np.isnan(logits_V[likeliest]):
        return likeliest
    p_V = np.exp(np.maximum((logits_V - logits_V[likeliest]) / np.float32(temperature), LOWEST))
    if top_p == 1:
        return _inverted(p_V.cumsum(dtype=np.float64), u)
    p_V /= p_V.sum()
    kept = np.flatnonzero(p_V >= 0.99 * (1 - top_p) / len(p_V))  # 0.99: rounding must leave none out
    kept = kept[_descending(p_V[kept])]
    up_to = p_V[kept].cumsum(dtype=np.float64)
    nucleus = 1 + int(up_to.searchsorted(top_p))  # the first that reaches top_p is in it
    return int(kept[_inverted(up_to[:nucleus], u)])


def _descending(p: np.ndarray) -> np.ndarray:
    """The order of positive float32 numbers, highest first, equals as they stand: their bits and places sorted as one whole number."""
    keys = (~p.view(np.uint32)).astype(np.uint64) << np.uint64(32) | np.arange(len(p), dtype=np.uint64)
    keys.sort()
    return keys & np.uint64(2**32 - 1)


def _inverted(up_to: np.ndarray, u: float) -> int:
    """The first place up to which lies more than the share u of the whole; there is one: u is coarser than what rounds to the whole."""
    return int(up_to.searchsorted(u * up_to[-1], side="right"))

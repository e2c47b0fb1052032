"""Fill-in-the-middle on one packed row: split each document piece at two token boundaries, and put its middle last.

The surprise: it happens at load time on rows that were packed with room for it (pack.CodePacker), so one set of shards
serves every rate, each epoch draws anew, and nothing overflows or is dropped. Splits fall between tokens: lossless with
every tokenizer. Formats after Bavarian et al. 2022 (arXiv 2207.14255), PSM and SPM variant 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class FimIds:
    """The five token ids that FIM and packing use."""

    prefix: int
    middle: int
    suffix: int
    pad: int
    eos: int

    @classmethod
    def of(cls, special: dict[str, int], eos_id: int) -> FimIds:
        """From a tokenizer's or manifest's `special` map."""
        return cls(
            prefix=special["<fim_prefix>"],
            middle=special["<fim_middle>"],
            suffix=special["<fim_suffix>"],
            pad=special["<fim_pad>"],
            eos=eos_id,
        )


def split_pieces(row: np.ndarray, ids: FimIds) -> list[np.ndarray]:
    """The document pieces of a row, padding left out; each ends in EOS, but the last may be cut and then does not."""
    content = row[row != ids.pad]
    ends = np.flatnonzero(content == ids.eos) + 1
    return [piece for piece in np.split(content, ends) if len(piece)]


def permute_row(row: np.ndarray, *, rate: float, spm_rate: float, rng: np.random.Generator, ids: FimIds) -> np.ndarray:
    """The row with each piece permuted with probability `rate`, of these `spm_rate` in SPM order; same shape and dtype.

    PSM: prefix p suffix s middle m EOS. SPM: prefix suffix s middle p m EOS. Four uniform draws a piece whatever the
    rates, so a piece's split does not depend on them. A permuted piece ends in EOS even where it was cut, because its
    middle is whole.
    """
    pieces = split_pieces(row, ids)
    draws = rng.random((len(pieces), 4))
    result = np.full_like(row, ids.pad)
    end = 0
    for piece, draw in zip(pieces, draws.tolist(), strict=True):
        chosen = _permute(piece, draw[1] < spm_rate, draw[2], draw[3], ids) if draw[0] < rate else piece
        assert end + len(chosen) <= len(row), "the row was packed without room for FIM"
        result[end : end + len(chosen)] = chosen
        end += len(chosen)
    return result


def _permute(piece: np.ndarray, spm: bool, first: float, second: float, ids: FimIds) -> np.ndarray:
    """`first`, `second`: uniform in [0, 1); the two splits are uniform over the len + 1 boundaries of the text."""
    n = len(piece) - int(piece[-1] == ids.eos)
    low, high = sorted((int(first * (n + 1)), int(second * (n + 1))))
    result = np.empty(n + 4, piece.dtype)
    result[0] = ids.prefix
    tail = n - high
    if spm:
        result[1] = ids.suffix
        result[2 : 2 + tail] = piece[high:n]
        result[2 + tail] = ids.middle
        result[3 + tail : n + 3] = piece[:high]
    else:
        result[1 : 1 + low] = piece[:low]
        result[1 + low] = ids.suffix
        result[2 + low : 2 + low + tail] = piece[high:n]
        result[2 + low + tail] = ids.middle
        result[3 + low + tail : n + 3] = piece[low:high]
    result[n + 3] = ids.eos
    return result


def unpermute_row(row: np.ndarray, *, cut: bool, ids: FimIds) -> np.ndarray:
    """The row that `permute_row` got. `cut`: its last piece had no EOS there, which a permuted row does not tell."""
    pieces = [_restore(piece, ids) for piece in split_pieces(row, ids)]
    if cut and pieces and pieces[-1][-1] == ids.eos:
        pieces[-1] = pieces[-1][:-1]
    result = np.full_like(row, ids.pad)
    content = np.concatenate(pieces) if pieces else row[:0]
    result[: len(content)] = content
    return result


def _restore(piece: np.ndarray, ids: FimIds) -> np.ndarray:
    """One rule for both orders: before suffix, after middle, then between them."""
    if piece[0] != ids.prefix:
        return piece
    suffix, middle = int(np.argmax(piece == ids.suffix)), int(np.argmax(piece == ids.middle))
    return np.concatenate([piece[1:suffix], piece[middle + 1 : -1], piece[suffix + 1 : middle], piece[-1:]])

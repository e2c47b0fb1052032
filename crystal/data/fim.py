"""Fill-in-the-middle on packed rows: split each piece of a document at two token boundaries, and put its middle last.

The surprise: it happens at load time on rows that were packed with room for it (`pack`), so one set of shards
serves every rate, each epoch draws anew, and nothing overflows or is dropped. Splits fall between tokens: lossless with
every tokenizer. Formats after Bavarian et al. 2022 (arXiv 2207.14255), PSM and SPM variant 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crystal.data.permute import GOLDEN, mix

DRAWS = 4  # of a piece: whether, in which order, and the two splits


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


def words_of(pieces: np.ndarray, *, key: int, epochs: np.ndarray, files: np.ndarray) -> np.ndarray:
    """64 random bits for each piece (m,) in its epoch (m,): by the piece's document and place in it, not by the row it lies in.

    `files`: a key of 64 bits for each input file, by its name, so that other files beside it change nothing.
    """
    words = mix(epochs.astype(np.uint64) ^ np.uint64(key))
    for part in (files[pieces["file"]], pieces["place"], pieces["start"]):
        words = mix(words ^ part.astype(np.uint64))
    return words


def draws_of(words: np.ndarray) -> np.ndarray:
    """(m,) random words -> (m, DRAWS) numbers uniform in [0, 1): what splitmix64 gives when it is started at each word."""
    steps = np.arange(DRAWS, dtype=np.uint64) * np.uint64(GOLDEN)
    return (mix(words[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def split_pieces(row: np.ndarray, ids: FimIds) -> list[np.ndarray]:
    """The document pieces of a row, padding left out; each ends in EOS, but the last may be cut and then does not."""
    content = row[row != ids.pad]
    ends = np.flatnonzero(content == ids.eos) + 1
    return [piece for piece in np.split(content, ends) if len(piece)]


def permute_row(row: np.ndarray, draws: np.ndarray, *, rate: float, spm_rate: float, ids: FimIds) -> np.ndarray:
    """`permute_rows` of one row (T + 1,), whose pieces are told apart by their EOS; `draws`: (pieces, DRAWS)."""
    lengths = np.array([len(piece) for piece in split_pieces(row, ids)], np.int64)
    return permute_rows(row[None], lengths, np.array([len(lengths)]), draws, rate=rate, spm_rate=spm_rate, ids=ids)[0]


def permute_rows(
    rows: np.ndarray, lengths: np.ndarray, counts: np.ndarray, draws: np.ndarray, *, rate: float, spm_rate: float, ids: FimIds
) -> np.ndarray:
    """Rows (B, T + 1) with each piece permuted with probability `rate`, of these `spm_rate` in SPM order; same shape and dtype.

    PSM: prefix p suffix s middle m EOS. SPM: prefix suffix s middle p m EOS. `lengths` (m,): ids of each piece, one behind the other;
    `counts` (B,): pieces of each row; `draws` (m, DRAWS): uniform in [0, 1), all used whatever the rates, so that a piece's splits do not
    depend on them. A permuted piece ends in EOS even where it was cut, because its middle is whole.
    """
    width = rows.shape[1]
    row_of = np.repeat(np.arange(len(rows)), counts)

    def summed(sizes: np.ndarray) -> np.ndarray:
        return np.bincount(row_of, sizes, minlength=len(rows)).astype(np.int64)

    in_row = summed(lengths)
    first = np.cumsum(lengths) - lengths + (np.arange(len(rows)) * width - np.cumsum(in_row) + in_row)[row_of]
    source = np.concatenate([rows.ravel(), np.array([ids.prefix, ids.suffix, ids.middle, ids.eos], rows.dtype)])
    n_text = lengths - (source[first + lengths - 1] == ids.eos)
    starts, sizes = _segments(first, n_text, draws, spm_rate, sentinels=rows.size)
    kept = draws[:, 0] >= rate
    starts[kept], sizes[kept] = first[kept, None], 0
    sizes[kept, 0] = lengths[kept]
    used = summed(sizes.sum(axis=1))
    assert used.max(initial=0) <= width, "the row was packed without room for FIM"
    starts, sizes = starts.ravel(), sizes.ravel()
    moved = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    result = np.full_like(rows, ids.pad)
    result[np.arange(width) < used[:, None]] = source[moved + np.arange(len(moved))]
    return result


def _segments(
    first: np.ndarray, n_text: np.ndarray, draws: np.ndarray, spm_rate: float, *, sentinels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each permuted piece's seven segments are copied from, in order, and their sizes: (m, 7) each.

    Both splits are uniform over the n_text + 1 boundaries of the text. At `sentinels`: prefix, suffix, middle, EOS.
    """
    low, high = np.sort((draws[:, 2:] * (n_text + 1)[:, None]).astype(np.int64), axis=1).T
    prefix, suffix, middle, eos = (np.full_like(first, sentinels + k) for k in range(4))
    one = np.ones_like(first)
    psm_starts = np.stack([prefix, first, suffix, first + high, middle, first + low, eos], axis=1)
    psm_sizes = np.stack([one, low, one, n_text - high, one, high - low, one], axis=1)
    spm_starts = np.stack([prefix, suffix, first + high, middle, first, first + low, eos], axis=1)
    spm_sizes = np.stack([one, one, n_text - high, one, low, high - low, one], axis=1)
    spm = (draws[:, 1] < spm_rate)[:, None]
    return np.where(spm, spm_starts, psm_starts), np.where(spm, spm_sizes, psm_sizes)


def unpermute_row(row: np.ndarray, lengths: Sequence[int], ids: FimIds) -> np.ndarray:
    """The row that `permute_rows` got, by its pieces' lengths: these say where one that was left alone ends, and what else was cut."""
    pieces, at = [], 0
    for length in lengths:
        if row[at] == ids.prefix:
            end = at + int(np.argmax(row[at:] == ids.eos)) + 1
            pieces.append(_restored(row[at:end], ids)[:length])
        else:
            end = at + length
            pieces.append(row[at:end])
        at = end
    result = np.full_like(row, ids.pad)
    content = np.concatenate(pieces) if pieces else row[:0]
    result[: len(content)] = content
    return result


def _restored(piece: np.ndarray, ids: FimIds) -> np.ndarray:
    """One rule for both orders: before suffix, after middle, then between them."""
    suffix, middle = int(np.argmax(piece == ids.suffix)), int(np.argmax(piece == ids.middle))
    return np.concatenate([piece[1:suffix], piece[middle + 1 : -1], piece[suffix + 1 : middle], piece[-1:]])

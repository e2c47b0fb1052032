"""CrystalCoder's own fill-in-the-middle, with its losses, to be compared with `crystal.data.fim` (fim.style=crystalcoder).

A row is cut at its EOS ids; a segment that is chosen is decoded, split at two characters, each of the three encoded by itself, and the
row cut or padded to its length at the end. Written anew after fim_hdf5_stage2.py and fim_hdf5_stage3.py of
LLM360/crystalcoder-data-prep (08167bc), which differ only in rate and epochs; given the same draws the rows are equal. The surprises
are theirs: encoding puts a space before each of the three; what no longer fits is the end of the last segment's middle; an empty
document vanishes with its EOS; and a row's last label is EOS even where its last document was cut and not permuted.

Two things are ours. Text that spells a special token stays text, where theirs turns it into the token: `<s>` in HTML would be a
beginning of document. And padding is left out, not decoded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crystal.data.fim import FimIds
from crystal.data.tokenizer import load_tokenizer


class CrystalCoderFim:
    """The transform of one row; `rate` of the segments are permuted, of these `spm_rate` in SPM order."""

    def __init__(self, tokenizer_path: str | Path, ids: FimIds, *, rate: float, spm_rate: float) -> None:
        self._tokenizer, self._ids = load_tokenizer(tokenizer_path), ids
        self._rate, self._spm_rate = rate, spm_rate

    def __call__(self, row: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """`row` (T + 1,), of which the T inputs are read, since theirs knows no more -> the same shape and dtype.

        Inputs, labels and mask (no padding) are then theirs; but a row that comes out short has EOS where its padding begins, as an input
        behind which no label counts.
        """
        inputs = row[:-1][row[:-1] != self._ids.pad]
        *ended, rest = np.split(inputs, np.flatnonzero(inputs == self._ids.eos) + 1)
        segments = [piece[:-1] for piece in ended if len(piece) > 1]
        if len(rest) or len(inputs) == len(row) - 1:  # a full row that ends in EOS has an empty segment behind it
            segments.append(rest)
        result = np.full_like(row, self._ids.pad)
        used = 0
        for segment in segments:
            ids = np.append(self._permuted(segment, draws), self._ids.eos)[: len(row) - used]
            result[used : used + len(ids)] = ids
            used += len(ids)
        return result

    def _permuted(self, segment: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """PSM: prefix p suffix s middle m. SPM: prefix suffix s middle p m."""
        if draws.random() >= self._rate:
            return segment
        text = self._tokenizer.decode(segment, skip_special=False)
        low, high = sorted(draws.integers(0, len(text) + 1, size=2).tolist())
        prefix, middle, suffix = self._tokenizer.encode_batch([text[:low], text[low:high], text[high:]])
        ids = self._ids
        if draws.random() < self._spm_rate:
            return np.concatenate([[ids.prefix, ids.suffix], suffix, [ids.middle], prefix, middle])
        return np.concatenate([[ids.prefix], prefix, [ids.suffix], suffix, [ids.middle], middle])

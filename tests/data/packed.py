"""Rows made of documents' ids in memory, for tests of what happens to rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crystal.data.pack import DOCUMENT, Plan, packer


def packed(
    documents: Sequence[np.ndarray],
    width: int,
    *,
    eos_id: int,
    pad_id: int,
    packing: str = "split",
    fim_room: bool = True,
    at_once: int = 7,
) -> tuple[np.ndarray, Plan]:
    """int64 rows (n, width) of all documents (ids without EOS), the last one padded, and their plan; a document's place is its number."""
    table = np.zeros(len(documents), DOCUMENT)
    table["place"], table["tokens"] = np.arange(len(documents)), [len(ids) for ids in documents]
    maker = packer(packing, width, fim_room=fim_room)
    plans = [maker.add(0, table[first : first + at_once]) for first in range(0, len(table), at_once)] + [maker.finish()]
    plan = Plan(*(np.concatenate(columns) for columns in zip(*plans, strict=True)))
    rows = np.full((len(plan.counts), width), pad_id, np.int64)
    used = np.zeros(len(rows), np.int64)
    for row, piece in zip(np.repeat(np.arange(len(rows)), plan.counts).tolist(), plan.pieces, strict=True):
        ids = np.append(documents[piece["place"]], eos_id)[piece["start"] :][: piece["length"]]
        rows[row, used[row] : used[row] + len(ids)] = ids
        used[row] += len(ids)
    return rows, plan

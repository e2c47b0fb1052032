"""A stage's loader, for whoever asks what the stage reads: training, task=ledger, task=contamination, task=export.

The surprise: there is no torch here, so that a question about the data does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crystal.config import Config
from crystal.data.loader import Entry, Loader, resolve_entries
from crystal.data.shards import Prepared
from stages.recipes import Recipe


def loader_of(config: Config, prepared: Prepared, made: Recipe) -> tuple[Loader, list[str]]:
    """The stage's loader on one rank, and the sources without rows, whose weight went to the others."""
    fim, redistributed = made.stage.fim, dict[str, None]()

    def resolved(entries: Sequence[Entry]) -> list[Entry]:
        full, empty = resolve_entries(entries, prepared, empty_source=config.data.empty_source, fim_style=fim.style)
        redistributed.update(dict.fromkeys(empty))
        return full

    loader = Loader(
        prepared, resolved(made.entries), seed=config.run.seed, batch_rows=config.scale.batch_rows,
        changes=[replace(change, entries=tuple(resolved(change.entries))) for change in made.changes],
        fim_rate=fim.rate, spm_rate=fim.spm_rate, fim_style=fim.style, documents=config.attention == "document",
    )  # fmt: skip
    return loader, list(redistributed)

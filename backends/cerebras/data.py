"""Batches as a CS system's input workers make them: each its own cut of the same global order.

Runs in the SDK's environment, on a cluster in processes of the workers. The surprise: nothing is shuffled or counted here. The SDK's
sampler says which global sample indices are this worker's, Crystal's loader says which rows these are, and so the order is that of every
other backend, whatever the number of systems and workers; the state is one integer and a fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crystal.config import require
from crystal.data.loader import Change, Entry, Loader
from crystal.data.prefetch import prefetched
from crystal.data.shards import Prepared
from crystal.engine import model_inputs


@dataclass(frozen=True)
class Source:
    """All that a worker needs to open the stage's loader: it travels to the workers, pickled. folder: of the prepared data, absolute."""

    folder: str
    entries: tuple[Entry, ...]
    seed: int
    batch_rows: int
    fim_rate: float
    spm_rate: float
    fim_style: str
    changes: tuple[Change, ...]
    documents: bool

    @classmethod
    def of(cls, loader: Loader) -> Source:
        folder = str(loader.prepared.folder.absolute())
        fim = loader.fim_rate, loader.spm_rate, loader.fim_style
        return cls(folder, loader.entries, loader.seed, loader.batch_rows, *fim, loader.changes, loader.documents)

    def loader(self) -> Loader:
        """Not verified again: the process that started the run has."""
        return Loader(
            Prepared.open(self.folder, verify=False), self.entries, seed=self.seed, batch_rows=self.batch_rows,
            changes=self.changes, fim_rate=self.fim_rate, spm_rate=self.spm_rate, fim_style=self.fim_style,
            documents=self.documents,
        )  # fmt: skip


class WorkerBatches:
    """This worker's batches from sample `samples_seen` on, as `TrainStep` takes them: the SDK's RestartableDataLoader."""

    def __init__(self, source: Source) -> None:
        self.loader, self.samples_seen = source.loader(), 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        from cerebras.pytorch.utils.data import DistributedSampler

        endless = range(2**62)  # the mixture has no last sample; the executor knows how many steps there are
        cuts = DistributedSampler(endless, shuffle=False, start_index=self.samples_seen, batch_size=self.loader.batch_rows)
        for batch in prefetched(self.loader.batch(indices[0], len(indices)) for indices in cuts):
            yield tuple(tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor for tensor in model_inputs(batch))

    def state_dict(self) -> dict[str, Any]:
        """Where the run is after the step that is being saved: the same in every worker."""
        from cerebras.pytorch.distributed import get_worker_state

        steps = get_worker_state().appliance_step
        return {"samples_seen": self.samples_seen + steps * self.loader.batch_rows, "fingerprint": self.loader.fingerprint()}

    def aggregate_state_dict(self, worker_states: list[dict[str, Any]]) -> dict[str, Any]:
        assert all(state == worker_states[0] for state in worker_states), worker_states
        return worker_states[0]

    def deaggregate_state_dict(self, aggregated_state_dict: dict[str, Any], strict: bool = True) -> dict[str, Any]:
        return aggregated_state_dict

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Go on from a state. Raises UserError where it is of other data, unless not `strict`."""
        theirs, ours = state_dict["fingerprint"], self.loader.fingerprint()
        got = f"the checkpoint's data has fingerprint {theirs[:12]}"
        require(theirs == ours or not strict, got, f"{ours[:12]}, the configured data's", "prepare that data again")
        self.samples_seen = int(state_dict["samples_seen"])

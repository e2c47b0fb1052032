"""One input worker of a simulated cluster, as the SDK's streamer sets it up: python -m tests.cerebras.worker TASK.pickle OUT.npz."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import cerebras.pytorch as cstorch
import dill
import numpy as np
from cerebras.pytorch.backend import Backend
from cerebras.pytorch.distributed import _set_streaming_batch_sizes
from cerebras.pytorch.distributed.cluster_resolver import ApplianceWorkerClusterResolver
from cerebras.pytorch.utils.data.dataloader import DataLoaderCheckpoint, RestartableDataLoader
from cerebras.pytorch.utils.data.streamer.data_pipe import DataLoaderCheckpointer, TensorNamer


def main(task: Path, out: Path) -> None:
    told = dill.loads(task.read_bytes())
    rank, n_systems, n_workers, rows = told["rank"], told["n_systems"], told["n_workers"], told["rows"]
    ApplianceWorkerClusterResolver.configure(rank, n_systems * n_workers, n_systems, n_workers)
    Backend._init_impl = False
    cstorch.backend("CSX")
    _set_streaming_batch_sizes([[rows // n_systems]] * n_systems)
    loader = told["input_fn"](*told["arguments"])
    assert isinstance(loader, RestartableDataLoader)
    loader.load_state_dict(loader.deaggregate_state_dict(told["state"], strict=True), strict=True)
    place = DataLoaderCheckpoint(rank % n_workers, n_workers, n_systems, rank // n_workers, 0, 0, 0, None)
    batches = DataLoaderCheckpointer(TensorNamer(iter(loader)), loader, place, rows // n_systems, told["saves"])
    mine = list(itertools.islice(batches, told["n_batches"]))
    states = {step: batches.state_dict(step).user_state_dict for step in told["saves"]}
    np.savez(out, *(np.stack([cstorch.to_numpy(batch[name]) for batch in mine]) for name in mine[0]))  # inputs, labels, mask, documents
    out.with_suffix(".json").write_text(json.dumps(states))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

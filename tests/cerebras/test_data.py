"""Input workers of a simulated cluster, each a process with the SDK's own sampler and restart protocol: one global order."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.cerebras.data import Source, WorkerBatches
from backends.cerebras.lowering import MODULE, read_module
from crystal.config import UserError
from crystal.data.loader import Entry, Loader
from crystal.data.prepare import Settings, prepare
from crystal.data.readers import Document
from crystal.data.shards import Prepared
from tests.cerebras.traced import SMALL
from tests.conftest import WORDS

dill = pytest.importorskip("dill", reason="needs the Cerebras SDK's environment: make cerebras-check")
pytest.importorskip("cerebras.pytorch", reason="needs the Cerebras SDK's environment: make cerebras-check")
ROOT, ROWS, STEPS, FIRST = Path(__file__).parents[2], 8, 6, 40


class Made:
    """A reader of made-up documents: this environment has no packages for the real formats."""

    def __init__(self, name: str, *, code: bool) -> None:
        self.name, self.code = name, code

    def identity(self) -> dict[str, Any]:
        return {"class": "Made", "path": "", "files": {self.name: 1}}

    def files(self) -> list[str]:
        return [self.name]

    def read(self, file: str) -> Iterator[Document]:
        rng = random.Random(self.name)
        for index in range(80):
            yield Document(f"{self.name} {index}: " + " ".join(rng.choices(WORDS, k=rng.randint(5, 60))), self.name, file, index)

    def part(self, document: Document) -> str:
        return self.name


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    out = tmp_path_factory.mktemp("prepared") / "rows"
    readers = [Made("text", code=False), Made("code", code=True)]
    prepare(readers, out, Settings(32, 320, holdout=0.1, valid_rows=2), tokenizer=None, label="test", progress=print)
    entries = [Entry("text", "text", 0.4), Entry("code", "code", 0.6, fim=True)]
    return Loader(Prepared.open(out, verify=True), entries, seed=3, batch_rows=ROWS, fim_rate=0.9, documents=True)


def of_workers(loader: Loader, folder: Path, *, n_systems: int, n_workers: int, state: dict) -> tuple[list[np.ndarray], list[dict]]:
    """What STEPS global batches are, put together from those of all workers; and the state after 4 steps of each."""
    told = {
        "n_systems": n_systems, "n_workers": n_workers, "rows": ROWS, "input_fn": WorkerBatches, "arguments": (Source.of(loader),),
        "state": state, "saves": [4], "n_batches": STEPS // n_workers,
    }  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parts = {}
    states = []
    for rank in range(n_systems * n_workers):
        task, out = folder / f"{rank}.pickle", folder / f"{rank}.npz"
        task.write_bytes(dill.dumps(told | {"rank": rank}))
        subprocess.run([sys.executable, "-m", "tests.cerebras.worker", task, out], cwd=folder, env=environment, check=True)
        parts[rank // n_workers, rank % n_workers] = list(np.load(out).values())
        states.append(json.loads(out.with_suffix(".json").read_text())["4"])
    batches = [
        np.stack([
            np.concatenate([parts[system, step % n_workers][field][step // n_workers] for system in range(n_systems)])
            for step in range(STEPS)
        ])
        for field in range(4)
    ]  # fmt: skip
    return batches, states


@pytest.mark.parametrize(("n_systems", "n_workers"), [(2, 2), (1, 1), (4, 1)])
def test_workers_make_the_global_order(loader: Loader, tmp_path: Path, n_systems: int, n_workers: int) -> None:
    state = {"samples_seen": FIRST, "fingerprint": loader.fingerprint()}
    batches, states = of_workers(loader, tmp_path, n_systems=n_systems, n_workers=n_workers, state=state)
    expected = list(loader.batches(FIRST, STEPS))  # those of backend=cpu
    for field, got in zip(("inputs_BT", "labels_BT", "mask_BT", "documents_BT"), batches, strict=True):
        assert np.array_equal(got, np.stack([getattr(batch, field) for batch in expected])), field
    assert states == [{"samples_seen": FIRST + 4 * ROWS, "fingerprint": loader.fingerprint()}] * n_systems * n_workers
    assert WorkerBatches(Source.of(loader)).aggregate_state_dict(states) == states[0]


def test_a_state_of_other_data_is_refused(loader: Loader) -> None:
    worker = WorkerBatches(Source.of(loader))
    with pytest.raises(UserError, match=r"fingerprint 0000.* expected .*; prepare that data again"):
        worker.load_state_dict({"samples_seen": 8, "fingerprint": "0" * 64})
    worker.load_state_dict({"samples_seen": 8, "fingerprint": "0" * 64}, strict=False)
    assert worker.samples_seen == 8


@pytest.mark.parametrize(("dtype", "kind"), [("cbfloat16", "mdl"), ("bfloat16", "pt")])
def test_the_training_loop_lowers(loader: Loader, tmp_path: Path, dtype: str, kind: str) -> None:
    """With its closures and its data, going on from either kind of checkpoint."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.cerebras.traced", str(loader.prepared.folder.absolute()), dtype, kind]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_module(tmp_path / "artifacts", SMALL, n_parameters=39)
    assert found["wrong"] == []
    fetched = re.findall(r'cs.output_name = "([^"]+)"', (tmp_path / "artifacts" / MODULE / "cirh.mlir").read_text())
    assert {"output_updates", "output_0_0", "output_0_1", "output_0_2"} < set(fetched)  # loss, gradient norm, rate

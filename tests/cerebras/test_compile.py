"""What the SDK's real client sends to a cluster, read from a recorder of its protocol; and what the user sees where there is none.

The surprise: compiling sends neither mounts nor Python paths; they go with the job that trains, which the recorder refuses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.cerebras.lowering import MODULE
from crystal.data.tokenizer import train_tokenizer
from tests.conftest import TEXT_SOURCES, VOCAB_SIZE, WORDS

h5py = pytest.importorskip("h5py", reason="needs the Cerebras SDK's environment: make cerebras-check")
pytest.importorskip("cerebras.pytorch", reason="needs the Cerebras SDK's environment: make cerebras-check")
loopback = pytest.importorskip("tests.cerebras.loopback", reason="needs the Cerebras SDK's environment: make cerebras-check")
ROOT, T, ROWS = Path(__file__).parents[2], 128, 8
MEMORY_GI = {"compile_crd": 11, "execute_crd": 12, "wrk": 13, "act": 14, "cmd": 15, "wgt": 16, "chf": 17}
CSX = ["optimization_level=2", "micro_batch_size=2", *(f"memory_gi.{process}={gib}" for process, gib in MEMORY_GI.items())]
CLUSTER = [
    "num_csx=2", "num_workers_per_csx=3", "max_wgt_servers=5", "max_act_per_csx=7", "mgmt_namespace=recorded", "cbcore_image=compiler:7",
    'job_labels=["kind=test","size=tiny"]', "job_priority=p1", "mount_dirs=[mount]", "python_paths=[code]", "automount=false",
    "disable_version_check=true", "workflow_id=workflow-7", "notifications=[{mailto:['a@b.c'],slack:[hook],severity_threshold:2}]",
]  # fmt: skip
OPTIONS = ["backend.compile_dir=kept", *(f"backend.cluster.{option}" for option in CLUSTER), *(f"backend.csx.{option}" for option in CSX)]
Calls = dict[str, dict[str, Any]]  # the last request of each method
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: with folders to mount, and rows for stage 1."""
    folder = tmp_path_factory.mktemp("user")
    ids_NT = 259 + np.arange(40 * T, dtype=np.int32).reshape(40, T) % 60
    for source in TEXT_SOURCES:
        (folder / "rows" / source / "even").mkdir(parents=True)
        with h5py.File(folder / "rows" / source / "even" / "0.h5", "w") as file:
            file["data"] = np.stack([ids_NT, np.ones_like(ids_NT), ids_NT], axis=1)
    train_tokenizer([one + two for one in WORDS for two in WORDS], VOCAB_SIZE, folder / "rows" / "tokenizer.json")
    for name in ("mount", "code"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def start(folder: Path) -> Start:
    """Begins a command on stage 1 in this environment."""
    given = [
        "data=hdf5", "data.root=rows", "data.out=out", "data.holdout=0.1", f"data.vocab_size={VOCAB_SIZE}",
        "model=tiny", "model.n_layers=1", f"model.vocab_size={VOCAB_SIZE}", f"scale.seq_len={T}", f"scale.batch_rows={ROWS}",
        "tokens=8192", "stage=1", "eval=none",
    ]  # fmt: skip
    command = [sys.executable, "-m", "crystal", "backend=cerebras", f"backend.python={sys.executable}", *given]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return lambda *more: subprocess.Popen([*command, *more], cwd=folder, env=environment, **pipes)


@pytest.fixture(scope="module", autouse=True)
def without_answer(start: Start) -> subprocess.Popen[str]:
    """Training by a cluster at whose address nobody listens. Begun first: the client tries for half a minute."""
    return start("backend.mode=train", "run.dir=without_answer", "backend.cluster.mgmt_address=localhost:1")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Iterator[Callable[..., tuple[int, str, Calls]]]:
    """Runs a command with all OPTIONS against the recorder: its status, what it said on stderr, and what it sent."""
    path = tmp_path_factory.mktemp("recorder") / "calls.jsonl"

    def run(*more: str) -> tuple[int, str, Calls]:
        before = len(path.read_text().splitlines())
        with start(*OPTIONS, f"backend.cluster.mgmt_address=localhost:{port}", *more) as process:
            _, said = process.communicate()
        return process.returncode, said, dict(json.loads(line) for line in path.read_text().splitlines()[before:])

    with subprocess.Popen([sys.executable, "-m", "tests.cerebras.loopback", path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        yield run
        process.terminate()


@pytest.fixture(scope="module")
def compiled(recorded: Callable[..., tuple[int, str, Calls]]) -> Calls:
    status, said, calls = recorded("backend.mode=compile", "run.dir=run")
    assert (status, said) == (0, "")
    return calls


def test_the_compile_request_is_the_local_module(compiled: Calls, start: Start, folder: Path) -> None:
    request = compiled["UnaryCompile"]
    sent = request["cirh_content"].encode()
    assert sent == (folder / "run/compile/stage1/artifacts" / MODULE / "cirh.mlir").read_bytes()
    assert b"pol = 2 " in sent  # csx.optimization_level
    with start("backend.mode=validate", "run.dir=run", *OPTIONS) as process:
        _, said = process.communicate()
    assert (process.returncode, said) == (0, "")
    assert sent == (folder / "run/validate/stage1/artifacts" / MODULE / "cirh.mlir").read_bytes()
    numbers = {"batch_size": ROWS, "num_csx": 2, "num_workers_per_csx": 3, "max_wgt_servers": 5, "max_act_per_csx": 7}
    assert {key: request[key] for key in numbers} == numbers
    assert request["compile_dir"] == loopback.COMPILE_DIR  # as the cluster answered to compile_dir=kept


def test_the_compile_job_has_what_is_configured(compiled: Calls) -> None:
    job = compiled["InitCompileJob"]
    assert (job["compile_dir_relative_path"], job["cbcore_image"]) == ("kept", "compiler:7")
    assert job["user_notifications"] == [
        {"notification_type": f"NOTIFICATION_TYPE_{kind}", "target": target, "severity_threshold": 2}
        for kind, target in (("EMAIL", "a@b.c"), ("SLACK", "hook"))
    ]
    manager = job["debug_args"]["debug_mgr"]
    expected = {"labels": {"kind": "test", "size": "tiny"}, "job_priority": "JOB_PRIORITY_P1", "workflow_id": "workflow-7"}
    assert {key: manager[key] for key in expected} == expected
    assert memory_gi(job) == {"CRD": MEMORY_GI["compile_crd"]}
    micro_batch = {"ws_opt_force_min_grad_accum_batch": "2", "ws_opt_force_max_grad_accum_batch": "2"}
    assert job["debug_args"]["ini"]["ints"] == micro_batch
    assert compiled["Get"]["options"]["namespace"] == "recorded"
    assert "UnaryStart" in compiled  # answered without a version, which only disable_version_check lets pass


def memory_gi(job: dict[str, Any]) -> dict[str, float]:
    """GiB by kind of process."""
    return {task["task_type"]: int(task["resource_info"]["memory_bytes"]) / 2**30 for task in job["job_mode"]["cluster_details"]["tasks"]}


def test_the_training_job_has_what_is_configured(recorded: Callable[..., tuple[int, str, Calls]], compiled: Calls, folder: Path) -> None:
    status, said, calls = recorded("backend.mode=train", "run.dir=trained")
    assert status == 2
    assert said.splitlines()[-1].startswith("error: the cluster at localhost:"), said
    assert f"{loopback.REFUSAL}; expected a cluster that takes the job; mend" in said.splitlines()[-1]
    job = calls["InitExecuteJob"]
    assert {mount["path"] for mount in job["mount_dirs"]} == {
        str(path) for path in (folder / "mount", ROOT, folder / "out", folder / "rows")
    }
    assert set(job["python_paths"]) == {str(folder / "code"), str(ROOT)}
    assert memory_gi(job) == {kind.removeprefix("execute_").upper(): gib for kind, gib in MEMORY_GI.items() if kind != "compile_crd"}
    same = ("compile_dir_relative_path", "cbcore_image", "user_notifications")
    assert {key: job[key] for key in same} == {key: compiled["InitCompileJob"][key] for key in same}
    assert calls["UnaryCompile"]["batch_size"] == ROWS


def test_no_cluster(start: Start, without_answer: subprocess.Popen[str]) -> None:
    with start("backend.mode=compile", "run.dir=without_address") as process:
        _, said = process.communicate()
    expected = "error: the user node's cluster: config error: mgmt_address has no default value; expected a cluster that takes the job; "
    assert (process.returncode, said.count("\n")) == (2, 1) and said.startswith(expected), said
    _, said = without_answer.communicate()
    line = said.splitlines()[-1]
    assert (without_answer.returncode, "Connection refused; " in line) == (2, True), said
    assert line.startswith("error: the cluster at localhost:1: "), said

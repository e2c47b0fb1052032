"""Every option reaches the SDK, and its cluster has no more of them: a new release that has shows here.

The surprise: the SDK's flags are one global thing, and it has one backend a process, so what sets it up is in a process of its own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from backends.cerebras.options import GIB_LIMITS, Cluster, Csx, Options
from crystal.config import UserError

cstorch = pytest.importorskip("cerebras.pytorch", reason="needs the Cerebras SDK's environment: make cerebras-check")
ROOT = str(Path(__file__).parents[2])
# Each option with another value than its default, and the flag of cstorch.backends.csx that it is.
FLAGS = {
    "optimization_level": (2, "precision.optimization_level"),
    "micro_batch_size": (4, "performance.micro_batch_size"),
    "transfer_processes": (3, "performance.transfer_processes"),
    "max_transfer_bytes": (2**20, "performance.max_transfer_bytes"),
    "compress_weights": (True, "performance.compress_weights"),
    "lazy_initialization": (False, "debug.lazy_initialization"),
    "fabric_type_blacklist": (["cs2"], "debug.fabric_type_blacklist"),
    **{f"memory_gi.{process}": (10 + i, f"debug.{process}_memory_gi") for i, process in enumerate(GIB_LIMITS)},
}
CHANGED = {
    "num_csx": 4, "num_workers_per_csx": 2, "max_wgt_servers": 3, "max_act_per_csx": 5, "mgmt_address": "host:9000",
    "mgmt_namespace": "space", "credentials_path": __file__, "cbcore_image": "image", "job_labels": ["key=value"], "job_priority": "p3",
    "job_time_sec": 60, "mount_dirs": ["/usr"], "python_paths": ["/tmp"], "automount": False, "mount_all": False,
    "disable_mount_check": False, "disable_version_check": True, "workflow_id": "id", "notifications": [{"slack": ["hook"]}],
}  # fmt: skip


def alone(function: Callable, *arguments: Any) -> Any:
    """What the function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


@pytest.fixture(scope="module")
def another() -> Iterator[ProcessPoolExecutor]:
    """A process in which no backend comes to be."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield process


def flags_with(csx: Csx | None) -> dict[str, Any]:
    """The SDK's flags of FLAGS, as they are or after `csx` has been applied."""
    if csx is not None:
        csx.apply()
    return {option: reduce(getattr, flag.split("."), cstorch.backends.csx) for option, (_, flag) in FLAGS.items()}


def options(cluster: Cluster, csx: Csx) -> Options:
    return Options("csx", "cbfloat16", "artifacts", None, cluster, csx, folders=["/etc"])


def started(cluster: Cluster) -> dict[str, Any]:
    """The cluster configuration of the SDK's own backend."""
    config = options(cluster, Csx()).start(mode="train", batch_rows=8).cluster.config
    return {field.name: getattr(config, field.name) for field in fields(config)}


def test_the_clusters_fields_are_the_sdks_with_its_defaults() -> None:
    theirs = cstorch.distributed.ClusterConfig()
    assert {field.name for field in fields(Cluster)} == {field.name for field in fields(theirs)}
    ours = cstorch.distributed.ClusterConfig(**asdict(Cluster()) | {"num_csx": 1})
    assert [field.name for field in fields(theirs) if getattr(ours, field.name) != getattr(theirs, field.name)] == []


def test_the_defaults_are_the_sdks_flags() -> None:
    assert alone(flags_with, Csx()) == alone(flags_with, None)


def test_every_flag_is_set() -> None:
    values = {option: value for option, (value, _) in FLAGS.items()}
    given = {option: value for option, value in values.items() if "." not in option}
    memory = {process: values[f"memory_gi.{process}"] for process in GIB_LIMITS}
    assert given.keys() | {"memory_gi"} == {field.name for field in fields(Csx)}
    before, after = alone(flags_with, None), alone(flags_with, Csx(**given, memory_gi=memory))
    assert after == values
    assert [option for option in FLAGS if before[option] == after[option]] == []


def test_every_field_of_the_cluster_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CHANGED.keys() == {field.name for field in fields(Cluster)}
    assert [name for name, value in asdict(Cluster()).items() if CHANGED[name] == value] == []
    got = alone(started, Cluster(**CHANGED))
    assert {mount.path for mount in got.pop("mount_dirs")} == {"/usr", "/etc", ROOT}
    assert set(got.pop("python_paths")) == {"/tmp", ROOT}
    (target,) = got.pop("notifications")
    assert (target.slack, target.severity_threshold) == (["hook"], 3)
    assert got.pop("job_priority") == cstorch.distributed.ClusterConfig(job_priority="p3").job_priority
    assert got == {name: CHANGED[name] for name in got}
    assert len(got) == len(CHANGED) - 4


@pytest.mark.parametrize(
    ("cluster", "csx", "words"),
    [
        ({"mgmt_address": "host"}, {}, "mgmt_address 'host' should be in the form of '<name>:<port>'"),
        ({"job_labels": ["kind"]}, {}, "'kind' is an invalid label"),
        ({"mount_dirs": ["/nowhere"]}, {}, "Mount dir /nowhere does not exist"),
        ({"python_paths": ["/nowhere"]}, {}, "/nowhere does not exist"),
        ({"max_act_per_csx": -1}, {}, "max_act_per_csx must be a non-negative integer"),
        ({"job_time_sec": 0}, {}, "job_time_sec must be a positive integer"),
        ({"notifications": [{"letter": ["me"]}]}, {}, "unexpected keyword argument 'letter'"),
        ({"notifications": [{"mailto": "me"}]}, {}, "Notification targets must be a list of strings"),
        ({}, {"micro_batch_size": "often"}, "for `micro_batch_size`"),
        ({}, {"micro_batch_size": 0}, 'Invalid value "0" for "micro_batch_size"'),
        ({}, {"transfer_processes": 0}, "transfer_processes must be a positive integer"),
        ({}, {"max_transfer_bytes": 2**40}, "max_transfer_bytes must be a positive integer"),
    ],
)
def test_what_the_sdk_refuses_is_one_line(another: ProcessPoolExecutor, cluster: dict[str, Any], csx: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        another.submit(start, cluster, csx).result()
    line = str(refusal.value)
    assert words in line and line.startswith("backend.cluster or backend.csx: ") and "\n" not in line, line
    assert line.endswith("; expected what the SDK takes; mend it")


def test_a_certificate_that_is_not_there_is_refused(another: ProcessPoolExecutor) -> None:
    with pytest.raises(UserError, match=r"backend.cluster.credentials_path=/nowhere.crt; expected the file of a certificate; mend it"):
        another.submit(start, {"credentials_path": "/nowhere.crt"}, {}).result()


def start(cluster: dict[str, Any], csx: dict[str, Any]) -> None:
    options(Cluster(**cluster), Csx(**csx)).start(mode="train", batch_rows=8)

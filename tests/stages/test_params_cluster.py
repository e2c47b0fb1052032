"""The cluster's part of a params.yaml: options of backend=cerebras to ModelZoo's `runconfig` and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from crystal.config import Config
from crystal.runlog import flattened
from stages.params_yaml import cluster
from stages.params_yaml.read import read
from tests.stages.released import PHASES, needs_released
from tests.stages.test_params_commands import runs  # noqa: F401 (a fixture)
from tests.stages.test_params_yaml import OPTIONS, example
from tests.test_conf import composed

# Another value than the default, for each option that releases 1.x have a word for.
SAID = {
    "compile_dir": "kept", "device": "cpu", "mode": "compile", "cluster.num_csx": 3, "cluster.num_workers_per_csx": 2,
    "cluster.max_wgt_servers": 7, "cluster.max_act_per_csx": 5, "cluster.mgmt_address": "host:9000", "cluster.mgmt_namespace": "space",
    "cluster.credentials_path": "/tls.crt", "cluster.job_labels": ["a=b"], "cluster.job_time_sec": 60, "cluster.mount_dirs": ["/data"],
    "cluster.python_paths": ["/code"], "cluster.disable_version_check": True, "csx.optimization_level": 0, "csx.transfer_processes": 4,
    "csx.micro_batch_size": 11, **{f"csx.memory_gi.{process}": 8 for process in ("compile_crd", "execute_crd", "wrk", "act", "cmd", "wgt")},
}  # fmt: skip
UNSAID = {
    "cluster.job_priority": "p1", "cluster.cbcore_image": "image", "cluster.automount": False, "cluster.mount_all": False,
    "cluster.disable_mount_check": False, "cluster.workflow_id": "id", "cluster.notifications": ["x"], "csx.memory_gi.chf": 8,
    "csx.max_transfer_bytes": 9, "csx.compress_weights": True, "csx.lazy_initialization": False, "csx.fabric_type_blacklist": ["cs2"],
}  # fmt: skip


def test_every_option_has_a_word_or_is_named_as_having_none() -> None:
    of_the_cluster = {key for key in cluster.DEFAULTS if key.startswith(("cluster.", "csx."))}
    assert SAID.keys() | UNSAID.keys() == of_the_cluster | {"compile_dir", "device", "mode"}
    assert cluster.unwritten(cluster.DEFAULTS | SAID | UNSAID) == UNSAID
    assert cluster.unwritten(cluster.DEFAULTS | SAID) == {}
    searched = {"csx.micro_batch_size.explore.min": 1}
    assert cluster.unwritten(searched) == searched


@pytest.mark.parametrize("option", SAID)
def test_each_option_is_a_key_of_its_own(option: str) -> None:
    default, changed = cluster.written({}), cluster.written({option: SAID[option]})
    assert default != changed
    options, understood = cluster.read(changed)
    assert options[option] == SAID[option] and understood == changed.keys()
    others = {key: value for key, value in cluster.read(default)[0].items() if key != option}
    assert {key: options[key] for key in others} == others


@pytest.mark.parametrize("micro_batch", ["auto", None, 11, "explore"])
def test_rows_at_once(micro_batch: Any) -> None:
    assert cluster.read(cluster.written({"csx.micro_batch_size": micro_batch}))[0]["csx.micro_batch_size"] == micro_batch


@pytest.mark.parametrize(("key", "value"), [("runconfig.precision_opt_level", -1), ("runconfig.target_device", "GPU")])
def test_what_this_sdk_has_not_is_not_understood(key: str, value: Any) -> None:
    assert cluster.read({key: value}) == ({}, set())


def test_zero_and_null_are_the_same() -> None:
    flat = {"runconfig.num_wgt_servers": 0, "runconfig.job_labels": [], "runconfig.disable_version_check": False}
    assert cluster.read(flat) == cluster.read(dict.fromkeys(flat))[:1] + (set(flat),)


def test_there_and_back_on_the_command_line(crystal, runs: list[Config], tmp_path: Path) -> None:  # noqa: F811
    given = ["stage=2", "model=7b", "backend=cerebras", "backend.compile_dir=kept", "backend.cluster.mount_dirs=[/data]"]
    given += ["backend.cluster.job_labels=['a=b']", "backend.cluster.job_priority=p1", "backend.csx.memory_gi.wrk=100"]
    params, out = tmp_path / "params.yaml", tmp_path / "imported.yaml"
    assert crystal("task=export", "format=params", *given, f"out={params}").status == 0
    assert "# No word in 1.x for backend.cluster.job_priority: p1\n" in params.read_text()
    written = yaml.safe_load(params.read_text())["runconfig"]
    assert (written["num_csx"], written["wrk_memory_gi"], written["job_labels"]) == (16, 100, ["a=b"])  # 2,112 rows divide by 16
    result = crystal("task=import", "backend=cerebras", f"source={params}", f"out={out}")
    assert (result.status, result.err) == (0, "") and "Crystal understands every key" in result.out
    assert crystal(f"config={out}").status == 0
    expected = composed(*given, "backend.cluster.num_csx=16").backend
    assert runs[0].backend == expected | {"cluster": expected["cluster"] | {"job_priority": "p2"}}


def test_only_for_that_backend(crystal, runs: list[Config], tmp_path: Path) -> None:  # noqa: F811
    path, out = example(tmp_path), tmp_path / "imported.yaml"
    result = crystal("task=import", f"source={path}", f"out={out}")
    assert result.status == 0 and f"{len(OPTIONS)} options of a Cerebras cluster are left out; backend=cerebras" in result.out
    assert crystal(f"config={out}", "backend=cpu").status == 0
    assert runs[0].backend == composed("backend=cpu").backend
    assert not any(key.startswith("runconfig.num_csx") for key, _ in flattened(yaml.safe_load(out.read_text())))


def test_a_value_that_does_not_fit_is_refused(crystal, tmp_path: Path) -> None:
    path = example(tmp_path, {"runconfig.num_csx": "many"})
    result = crystal("task=import", "backend=cerebras", f"source={path}", f"out={tmp_path}/imported.yaml")
    assert (result.status, len(result.err.splitlines())) == (2, 1)
    assert result.err.startswith(f"error: {path}: backend.cluster.num_csx: Value 'many'"), result.err
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]


@needs_released
def test_the_released_files_cluster() -> None:
    options = [read(PHASES / f"phase{phase}.yaml", composed("model=7b"))[0].backend for phase in (1, 2, 3)]
    first, second, third = options
    assert (first["cluster.num_csx"], first["cluster.max_act_per_csx"], first["csx.optimization_level"]) == (16, 1, 1)
    assert first["cluster.job_labels"][-1] == "Dataset=SlimPJ" and first["cluster.mgmt_namespace"] == "rel-191-g42"
    assert {**first, "csx.optimization_level": None} == {**second, "csx.optimization_level": None}
    assert "csx.optimization_level" not in second  # -1 there
    assert third == {"cluster.mgmt_namespace": "rel-191-g42", "csx.memory_gi.wrk": 100, "csx.micro_batch_size": "auto"}

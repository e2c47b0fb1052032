"""The options of backend=cerebras as they are without the SDK: conf/backend/cerebras.yaml and the dataclasses say the same."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from backends.cerebras import CerebrasBackend
from backends.cerebras.options import Cluster
from stages.tasks import instantiated
from tests.test_conf import composed

WRITTEN = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[1] / "conf" / "backend" / "cerebras.yaml"), resolve=False)


def test_every_key_is_a_field_with_the_same_default() -> None:
    of_the_run = {key: value for key, value in WRITTEN.items() if "${" in str(value)}
    assert of_the_run.keys() == {"artifact_dir", "folders"}
    assert {"_target_": "backends.cerebras.CerebrasBackend"} | asdict(CerebrasBackend()) | of_the_run == WRITTEN


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("mode=run", "backend.mode=run; expected train, compile, validate; "),
        ("device=gpu", "backend.device=gpu; expected csx or cpu; "),
        ("dtype=float32", "backend.dtype=float32 on backend.device=csx; expected cbfloat16, bfloat16, float16; "),
        ("cluster.num_csx=0", "backend.cluster.num_csx=0; expected a finite number above 0; "),
        ("cluster.num_csx=5", "backend.cluster.num_csx=5; expected a divisor of scale.batch_rows=2112; "),
        ("cluster.num_csx=many", "backend.cluster.num_csx: Value 'many'"),
        ("cluster.num_workers_per_csx=0", "num_workers_per_csx=0; expected a finite number above 0; "),
        ("cluster.job_priority=p0", "backend.cluster.job_priority=p0; expected p1, p2, p3; "),
        ("cluster.num_csxs=2", "num_csxs"),
        ("csx.optimization_level=3", "backend.csx.optimization_level=3; expected 0, 1 or 2; "),
        ("csx.memory_gi.wrk=much", "backend.csx.memory_gi.wrk: Value 'much'"),
    ],
)
def test_what_does_not_fit_is_one_line(option: str, words: str, crystal) -> None:
    result = crystal("task=validate", "model=7b", "dry_run=true", "backend=cerebras", f"backend.{option}")
    assert (result.status, len(result.err.splitlines())) == (2, 1), result
    assert result.err.startswith("error: ") and words in result.err and result.err.count("; ") >= 2, result.err


def test_lists_and_mappings_go_on_as_such() -> None:
    given = ["cluster.job_labels=['kind=test']", "csx.micro_batch_size={explore:{min:1,max:8}}", "csx.fabric_type_blacklist=[cs2]"]
    given += ["cluster.notifications=[{mailto:['a@b.c']}]", "csx.memory_gi.wrk=100"]
    backend = instantiated(composed("backend=cerebras", *(f"backend.{option}" for option in given)).backend, "backend")
    told = json.loads(json.dumps(asdict(backend)))  # as it goes to the SDK's process
    assert (told["cluster"]["job_labels"], told["cluster"]["notifications"]) == (["kind=test"], [{"mailto": ["a@b.c"]}])
    assert told["csx"]["micro_batch_size"] == {"explore": {"min": 1, "max": 8}}
    assert (told["csx"]["fabric_type_blacklist"], told["csx"]["memory_gi"]["wrk"]) == (["cs2"], 100)


def test_paths_are_those_of_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = Cluster(mount_dirs=["a", "/b"], python_paths=["../c"], credentials_path="tls.crt")
    assert (cluster.mount_dirs, cluster.credentials_path) == ([str(tmp_path / "a"), "/b"], str(tmp_path / "tls.crt"))
    assert Cluster(**asdict(cluster)) == cluster


def test_a_step_that_does_not_lower_ends_with_status_2(crystal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was found is printed for every stage, what is wrong in one line."""
    found = {"operations": {"MatMul": 3}, "state_bytes": 12, "wrong": ["no erfinv at model.py:7 (forward)"], "parameters": 5}
    monkeypatch.setattr(CerebrasBackend, "lower", lambda self, spec, artifacts, documents: found | {"seconds": 1.0, "memory_bytes": 10**9})
    result = crystal("task=validate", "model=tiny", "backend=cerebras", f"run.dir={tmp_path}")
    assert result.status == 2 and result.out.count("does not lower; 5 parameters, 3 operations (MatMul 3), 12 bytes of state") == 3
    assert result.err.startswith("error: stage 1: no erfinv at model.py:7 (forward); stage 2: ") and len(result.err.splitlines()) == 1

"""Scoring a checkpoint and the live weights that it was saved from; what is scored again and what is not; bits per byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.code import execution
from crystal import checkpoint
from crystal.config import EvalConfig, UserError
from crystal.data.shards import Prepared
from crystal.evalconfig import Asking, ProtocolConfig
from crystal.generate import Completer
from stages.heldout import write_heldout
from stages.scoring import protocol_key, score_checkpoint
from tests.benchmarks.test_problems import TASK, written

STAGE = "stage1"
Load = Callable[[], Completer]


def config_of(path: str, **changes: Any) -> EvalConfig:
    node = {"_target_": "benchmarks.code.problems.HumanEval", "path": path}
    protocol = ProtocolConfig("plain", "here@1", humaneval=Asking("raw", ["\ndef"]), infill=Asking("infill", [], truncation="none"))
    given = {"benchmarks": {"humaneval": node}, "max_new_tokens": 8, "n_samples": 3, "temperature": 0.8, "workers": 1, **changes}
    return EvalConfig(protocol, **given)


@pytest.fixture
def folder(trained: Path) -> Path:
    return sorted((trained / STAGE / "checkpoints").iterdir())[-1]


@pytest.fixture
def load(folder: Path) -> Load:
    return lambda: Completer.load(folder, device="cpu")


def never() -> Completer:
    raise AssertionError("nothing is to be generated")


def test_scores_are_kept_until_what_decides_them_changes(tmp_path: Path, folder: Path, load: Load) -> None:
    path = written(tmp_path, TASK, {**TASK, "task_id": "Mine/1"})
    first = score_checkpoint(folder, config_of(path), out=tmp_path, sandbox="auto", load=load)
    assert json.loads((tmp_path / "humaneval.json").read_text()) == first["humaneval"]
    assert (first["humaneval"]["checkpoint"], first["humaneval"]["seed"], first["humaneval"]["status"]) == (folder.name, 1, "scored")
    assert score_checkpoint(folder, config_of(path, workers=2, batch_size=1), out=tmp_path, sandbox="auto", load=never) == first
    again = score_checkpoint(folder, config_of(path, batch_size=1, workers=2), out=tmp_path / "other", sandbox="auto", load=load)
    rows = [row | {"reason": ""} for row in again["humaneval"]["problems"]]
    assert rows == [row | {"reason": ""} for row in first["humaneval"]["problems"]]
    for change in ({"seed": 2}, {"n_samples": 2}, {"temperature": 0.5}, {"timeout_s": 4.0}):
        with pytest.raises(AssertionError, match="nothing is to be generated"):
            score_checkpoint(folder, config_of(path, **change), out=tmp_path, sandbox="auto", load=never)
    one = score_checkpoint(folder, config_of(path, limit=1), out=tmp_path / "one", sandbox="auto", load=load)["humaneval"]
    assert (one["problems_total"], one["protocol"]["limit"]) == (1, 1)


def test_other_problems_or_weights_under_the_same_name_are_scored_anew(tmp_path: Path, folder: Path, load: Load) -> None:
    path, own = written(tmp_path, TASK), tmp_path / "step-00000001"
    shutil.copytree(folder, own)
    first = score_checkpoint(own, config_of(path), out=tmp_path, sandbox="auto", load=load)["humaneval"]
    written(tmp_path, TASK, {**TASK, "task_id": "Mine/1"})
    second = score_checkpoint(own, config_of(path), out=tmp_path, sandbox="auto", load=load)["humaneval"]
    assert (first["problems_total"], second["problems_total"]) == (1, 2)
    (earlier,) = (tmp_path / "earlier").iterdir()
    assert json.loads(earlier.read_text()) == first
    sums = json.loads((own / "COMPLETE").read_text())
    sums["weights.pt"]["crc32"] ^= 1
    (own / "COMPLETE").write_text(json.dumps(sums))
    with pytest.raises(AssertionError, match="nothing is to be generated"):
        score_checkpoint(own, config_of(path), out=tmp_path, sandbox="auto", load=never)


def test_what_was_judged_unsafe_does_not_stand_for_a_sandbox(tmp_path: Path) -> None:
    def key(config: EvalConfig, sandbox: str) -> str:
        return protocol_key(config, "humaneval", weights="crc32:1", version="1", sandbox=sandbox)

    config = config_of("x")
    assert key(config, "auto") == key(config, "seccomp") != key(config, "unsafe")
    assert key(config, "auto") == key(config_of("x", device="cuda"), "auto") != key(config_of("y"), "auto")


def test_filling_in_asks_with_prefix_and_suffix(tmp_path: Path, folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        Completer, "infill", lambda self, pairs, sampling, *, stops, seeds: asked.extend(pairs) or ["    y = x"] * len(pairs)
    )
    node = {"_target_": "benchmarks.code.infill.HumanEvalInfill", "path": written(tmp_path, TASK)}
    config = config_of("", benchmarks={"humaneval_infill": node}, n_samples=1)
    rows = score_checkpoint(folder, config, out=tmp_path, sandbox="auto", load=load)["humaneval_infill"]["problems"]
    assert asked[0] == (TASK["prompt"], "\n\n    return 2 * y\n")
    assert [row["passed"] for row in rows] == [True, False]


def test_an_answer_is_decoded_as_the_protocol_says(tmp_path: Path, folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Completer, "complete", lambda self, prompts, sampling, *, stops, seeds: ["    return 2 * x"] * len(prompts))
    monkeypatch.setattr(Completer, "alone", lambda self, completion: completion.removeprefix(" "))
    found = {}
    for alone in (False, True):
        protocol = ProtocolConfig("plain", "here@1", humaneval=Asking("raw", [], alone=alone))
        config = EvalConfig(protocol, benchmarks=config_of(written(tmp_path, TASK)).benchmarks, workers=1)
        (row,) = score_checkpoint(folder, config, out=tmp_path, sandbox="auto", load=load)["humaneval"]["problems"]
        found[alone] = row["completion"]
    assert found == {False: "    return 2 * x", True: "   return 2 * x"}


def test_a_layer_asked_for_by_name_judges_anew(tmp_path: Path, folder: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = config_of(written(tmp_path, TASK)), tmp_path / "scores"
    layers = [
        score_checkpoint(folder, config, out=out, sandbox=asked, load=load)["humaneval"]["sandbox"]["layer"]
        for asked in ("seccomp", "unsafe")
    ]
    assert layers == ["seccomp", "unsafe"]
    capsys.readouterr()
    assert score_checkpoint(folder, config, out=out, sandbox="seccomp", load=never)["humaneval"]["sandbox"]["layer"] == "seccomp"
    assert "scored before" in capsys.readouterr().out
    assert json.loads((out / "humaneval.json").read_text())["sandbox"]["layer"] == "seccomp", "taken back from earlier/"


def test_without_isolation_a_benchmark_is_recorded_as_absent(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(limits: object, sandbox: str, n: int) -> None:
        raise UserError(f"sandbox={sandbox}, and nothing isolates; expected a layer; install bubblewrap")

    monkeypatch.setattr(execution, "_workers", refused)
    found = score_checkpoint(folder, config_of(written(tmp_path, TASK)), out=tmp_path, sandbox="auto", load=never)["humaneval"]
    assert found["status"] == "absent"
    assert found["reason"].startswith("sandbox=auto, and nothing isolates")


def test_training_goes_on_without_isolation_and_evaluation_does_not(
    crystal: Any, tiny_overrides: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(limits: object, sandbox: str, n: int) -> None:
        raise UserError("nothing isolates; expected a layer that does; install bubblewrap")

    monkeypatch.setattr(execution, "_workers", refused)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    given = [*tiny_overrides, "eval=humaneval", f"eval.benchmarks.humaneval.path={written(tmp_path, TASK)}", f"run.dir={run}"]
    assert (refusal := crystal(*given, "task=evaluate")).status == 2
    assert refusal.err == "error: nothing isolates; expected a layer that does; install bubblewrap\n"
    done = crystal(*given)
    assert done.status == 0, done.err
    assert done.err.count("benchmarks will not be scored: nothing isolates") == 1
    assert json.loads((run / STAGE / "scores" / "humaneval.json").read_text())["status"] == "absent"


def test_live_weights_score_as_their_checkpoint(
    crystal: Any, tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, loaded, read = tmp_path / "run", [], Completer.load
    monkeypatch.setattr(Completer, "load", lambda folder, *, device: loaded.append(folder) or read(folder, device=device))
    given = [*tiny_overrides, "stage=1", "eval=humaneval", f"eval.benchmarks.humaneval.path={written(tmp_path, TASK)}", f"run.dir={run}"]
    assert (done := crystal(*given)).status == 0, done.err
    assert loaded == []
    assert "held-out Python: " in done.out
    assert (done := crystal(*given, "task=evaluate")).status == 0, done.err
    (folder,) = loaded
    outs = (run / STAGE / "scores", run / STAGE / "evaluations" / folder.name)
    live, saved = (json.loads((out / "humaneval.json").read_text()) for out in outs)
    assert [row["completion"] for row in live["problems"]] == [row["completion"] for row in saved["problems"]]
    assert live["problems"][0]["completion"] != ""
    bits = [json.loads((out / "heldout.json").read_text()) for out in outs]
    assert bits[0] == bits[1]
    # the same rows, loss and bytes as the run's own validation
    valid = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert bits[0]["python"]["bits_per_byte"] == pytest.approx(
        [line["bits_per_byte"]["starcoder/python"] for line in valid if line["kind"] == "valid"][-1], rel=1e-5
    )


def test_without_held_out_python_it_says_so(load: Load, folder: Path, tiny_overrides: list[str], tmp_path: Path, capsys: Any) -> None:
    given = dict(override.split("=") for override in tiny_overrides)
    prepared = Prepared.open(given["data.out"], verify=False)
    prepared.valid = {}
    for here, why in (
        (prepared, "holds out nothing of starcoder/python"),
        ("no prepared data in x; prepare them", "no prepared data in x"),
    ):
        write_heldout(tmp_path / f"{len(why)}.json", load, folder=folder, prepared=here, attention="full")
        assert f"held-out Python: bits per byte not measured: {why}" in capsys.readouterr().err.replace(f"{prepared.folder} ", "")


def test_other_weights_under_the_same_name_are_measured_again(load: Load, folder: Path, tmp_path: Path) -> None:
    same, path = shutil.copytree(folder, tmp_path / folder.name), tmp_path / "heldout.json"

    def measured(load: Load) -> Any:
        write_heldout(path, load, folder=same, prepared="none here", attention="full")
        return json.loads(path.read_text())

    first = measured(load)
    assert (first["checkpoint"], first["weights"]) == (folder.name, checkpoint.fingerprint(folder))
    assert measured(never) == first
    weights = checkpoint.read_weights(folder)
    checkpoint.write_tensors(same / "weights.pt", {name: 2 * tensor for name, tensor in weights.items()})
    (same / checkpoint.COMPLETE).unlink()
    checkpoint.seal(same, checkpoint.read_state(folder), tokenizer=folder / "tokenizer.json")
    second = measured(lambda: Completer.load(same, device="cpu"))
    assert second["weights"] != first["weights"]
    if "absent" not in first["canonical"]:
        assert second["canonical"]["bits_per_byte"] != first["canonical"]["bits_per_byte"]

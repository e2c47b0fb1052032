"""What a run directory refuses: a second process, another tokenizer, other settings, damaged files; and old runs, which it does not."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from crystal.checkpoint import COMPLETE, latest, read_model
from crystal.config import UserError
from crystal.data.tokenizer import train_tokenizer
from crystal.runlog import flattened, read_json, read_lines
from stages.record import differences, only_process, refuse_other_model, refuse_other_numbers
from tests.conftest import VOCAB_SIZE
from tests.small import small_config


def test_one_process_at_a_time(tmp_path):
    with only_process(tmp_path), pytest.raises(UserError, match="another process is training"), only_process(tmp_path):
        pass
    with only_process(tmp_path):
        pass


def test_a_stage_does_not_go_on_with_another_tokenizer(crystal, corpus, tiny_overrides, trained, tmp_path):
    """Neither in the same run, whose rows are now others, nor from a checkpoint of another run."""
    other = tmp_path / "corpus"
    shutil.copytree(corpus, other)
    letters = "".join(random.Random(1).choices("abcdefghij   ", k=5000))
    train_tokenizer([letters], VOCAB_SIZE, other / "tokenizer" / "tokenizer.json")
    moved = [o for o in tiny_overrides if not o.startswith(("data.root=", "data.out="))]
    command = [*moved, f"data.root={other}", f"data.out={tmp_path / 'rows'}"]
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "stage2")
    result = crystal(*command, "stage=2", f"run.dir={run}")
    assert result.status == 2 and "prepared.tokenizer" in result.err and not (run / "stage2").exists()
    result = crystal(*command, "stage=2", f"run.dir={tmp_path / 'fresh'}", f"init_from={latest(trained / 'stage1' / 'checkpoints')}")
    assert result.status == 2 and "another tokenizer" in result.err


NEW_SETTINGS = ("parametrization", "depth", "base_layers")  # of the model, which the first runs had not


def without_new_settings(run: Path) -> Path:
    """Make a run one of the first: its numbers.json, and its stage 1's last checkpoint, which is returned."""
    last = latest(run / "stage1" / "checkpoints")
    assert last is not None
    for path in (run / "numbers.json", last / "state.json"):
        content = read_json(path, {})
        content.pop("attention", None)
        content["model"] = {key: value for key, value in content["model"].items() if key not in NEW_SETTINGS}
        path.write_text(json.dumps(content))
    (last / COMPLETE).write_text("{}")  # nothing to check
    return last


def test_a_run_from_before_the_model_had_all_of_its_settings(crystal, tiny_overrides, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "stage2")
    last = without_new_settings(run)
    command = [*tiny_overrides, "stage=2", f"run.dir={run}"]
    for setting, there in (("model.parametrization=sp", "mup"), ("attention=document", "full")):
        result = crystal(*command, setting)
        assert result.status == 2 and f"{setting} (there: {there})" in result.err, result
    elsewhere = crystal(*tiny_overrides, "stage=2", f"run.dir={tmp_path / 'fresh'}", f"init_from={last}", "model.depth=completep")
    assert elsewhere.status == 2 and "model.depth=none (configured: completep)" in elsewhere.err, elsewhere
    assert crystal(*command).status == 0
    kept = read_json(run / "numbers.json", {})
    assert (kept["model"]["depth"], kept["attention"]) == ("none", "full")


def test_a_model_setting_that_this_version_has_not(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    last = without_new_settings(run)
    known = {"model": asdict(read_model(last))}
    refuse_other_numbers(run / "numbers.json", known)
    for path in (run / "numbers.json", last / "state.json"):
        content = read_json(path, {})
        content["model"]["n_experts"] = 8
        path.write_text(json.dumps(content))
    words = "keeps a model with n_experts=8; expected name, d_model, .* as this version has them; use the version of Crystal"
    with pytest.raises(UserError, match=f"numbers.json {words}"):
        refuse_other_numbers(run / "numbers.json", known)
    with pytest.raises(UserError, match=f"{last.name} {words}"):
        refuse_other_model(last, small_config())


def test_nested_values_have_dotted_keys():
    value = {"a": {"b": 1, "c": {}}, "d": [{"e": None}, 2], "f": [1, 2], "g.h": "i"}
    assert list(flattened(value)) == [("a.b", 1), ("a.c", {}), ("d.0.e", None), ("d.1", 2), ("f", [1, 2]), ("g.h", "i")]
    assert list(flattened({})) == [] and list(flattened(3)) == [("", 3)]
    assert differences({"a": {"b": 1, "c": 2}, "d": [3]}, {"a": {"b": 1}, "d": (3,), "e": 0}) == [("a.c", 2, None), ("e", None, 0)]


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_damaged_json(tmp_path: Path, content: str):
    path = tmp_path / "numbers.json"
    path.write_text(content)
    with pytest.raises(UserError, match="numbers.json"):
        read_json(path, {})
    with pytest.raises(UserError, match="numbers.json"):
        refuse_other_numbers(path, {"a": 1})


def test_a_damaged_line_before_the_last(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="metrics.jsonl has a damaged line"):
        read_lines(path)


def test_a_model_that_the_memory_cannot_hold(crystal, tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.setattr("crystal.machine.memory_bytes", lambda: 1000)
    result = crystal(*tiny_overrides, f"run.dir={tmp_path / 'run'}")
    assert result.status == 2 and "take a smaller model" in result.err and not (tmp_path / "run").exists()

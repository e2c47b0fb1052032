"""What a run directory refuses: a second process, another tokenizer, damaged files."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from crystal.checkpoint import latest
from crystal.config import UserError
from crystal.data.tokenizer import train_tokenizer
from crystal.runlog import read_json, read_lines
from stages.record import only_process, refuse_other_numbers
from tests.conftest import VOCAB_SIZE


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

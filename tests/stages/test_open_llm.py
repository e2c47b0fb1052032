"""eval=open_llm on a checkpoint: what has no data here is absent, a task of one's own is scored; and the leaderboard's average."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.open_llm import LEADERBOARD, open_llm_average
from tests.conftest import Finished


def test_the_average_of_the_leaderboard() -> None:
    results: dict[str, dict[str, Any]] = {
        task: {"benchmark": task, "status": "scored", "score": 0.5, "subtasks": {}} for task in LEADERBOARD
    }
    results["mmlu"]["subtasks"] = {"small": 1.0, "large": 0.6}
    assert open_llm_average(results.values()) == pytest.approx((3 * 0.5 + 0.8) / 4)
    results["mmlu"] = {"benchmark": "mmlu", "status": "absent", "reason": ""}
    assert open_llm_average(results.values()) is None and open_llm_average([]) is None


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    return folder


def test_a_task_of_ones_own_beside_those_without_data(
    crystal: Callable[..., Finished], tiny_overrides: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    import datasets.config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"ka {i}", "label": i % 2}) + "\n" for i in range(6)))
    task = {
        "task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "text", "doc_to_target": "label",
        "doc_to_choice": ["to", "mi"], "metric_list": [{"metric": "acc"}], "metadata": {"version": 2.0},
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(json.dumps(task))
    own = f"{{_target_: benchmarks.language.tasks.LmEvalTask, task: own, include: '{tmp_path}', shots: 0}}"
    options = [option for option in tiny_overrides if option != "eval=none"]
    finished = crystal(*options, f"run.dir={run}", "task=evaluate", "eval=open_llm", f"+eval.benchmarks.own={own}")
    assert finished.status == 0, finished.err
    (folder,) = (run / "stage3" / "evaluations").iterdir()
    scores = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert (scores["own"]["status"], scores["own"]["problems_total"], scores["own"]["version"]) == ("scored", 6, "2.0")
    assert "own: acc" in finished.out
    for name in ("arc", "hellaswag", "mmlu", "truthfulqa"):
        assert scores[name]["status"] == "absent" and "could not be had" in scores[name]["reason"]
        assert f"{name}: not scored: the data of lm-eval's" in finished.err


def test_a_task_that_is_not_there_is_refused(crystal: Callable[..., Finished], tiny_overrides: list[str], run: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    task = "{_target_: benchmarks.language.tasks.LmEvalTask, task: crystal_none}"
    finished = crystal(*tiny_overrides, f"run.dir={run}", "task=evaluate", f"+eval.benchmarks.own={task}")
    assert finished.status == 2 and finished.err.strip().split("\n")[-1].startswith("error: lm-eval has no task crystal_none")

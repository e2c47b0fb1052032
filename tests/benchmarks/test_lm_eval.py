"""A checkpoint behind lm-eval's interface beside lm-eval's own model on the same weights exported, and tasks with data of our own.

The surprise: lm-eval's model puts no end-of-text token before a context, so here it is given one as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

if not (find_spec("lm_eval") and find_spec("transformers")):  # not imported yet: tests.release.conftest looks at torchvision first
    pytest.skip("lm-eval or transformers is not installed", allow_module_level=True)

from lm_eval.api.instance import Instance

from benchmarks.code.problems import BenchmarkAbsent
from benchmarks.language.model import CrystalLM
from benchmarks.language.tasks import LmEvalTask
from crystal.config import UserError
from crystal.release.hf import export_stock
from tests.conftest import VOCAB_SIZE
from tests.release.conftest import hf_modules, write_random  # noqa: F401  hf_modules: no network for anything here
from tests.small import small_config

PAIRS = [
    ("ka to", " miren"), ("perba", "ul"), ("def f(x):", "\n    return x"), ("", "sho ing"), ("to ", "mi"), ("to ", "ka"),
    ("ka per " * 30, "mi ren ul"), ("ul", " mi ren ul sho per"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A random model whose context, 64 tokens, the longest of the pairs does not fit."""
    folder = tmp_path_factory.mktemp("random") / "checkpoint"
    write_random(folder, small_config(vocab_size=VOCAB_SIZE, seq_len=64), corpus / "tokenizer" / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> CrystalLM:
    return CrystalLM(folder, batch_size=3, device="cpu")


@pytest.fixture(scope="module")
def theirs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval.models.huggingface import HFLM

    out = tmp_path_factory.mktemp("exported") / "out"
    export_stock(folder, out, dtype="float32")
    return HFLM(pretrained=str(out), device="cpu", batch_size=2, max_length=64)


def asked(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, given, place) for place, given in enumerate(arguments)]


def test_log_likelihoods_are_those_of_lm_evals_own_model(ours: CrystalLM, theirs: Any) -> None:
    got = ours.loglikelihood(asked("loglikelihood", PAIRS))
    begun = [("</s>" + context if context else "", continuation) for context, continuation in PAIRS]
    expected = theirs.loglikelihood(asked("loglikelihood", begun))
    for (log_p, greedy), (log_q, likewise) in zip(got, expected, strict=True):
        assert log_p == pytest.approx(log_q, abs=1e-3) and log_p < 0 and greedy == likewise


def test_the_likeliest_token_is_called_so(ours: CrystalLM) -> None:
    model, ids = ours.completer.model, ours.tok_encode("ka to")
    with torch.no_grad():
        best = int(model(torch.tensor([ids]))[0, -1].argmax())
    found = ours._loglikelihood_tokens([(None, ids, [best]), (None, ids, [best + 1]), (None, ids, [best, 5])], disable_tqdm=True)
    assert [greedy for _, greedy in found][:2] == [True, False] and found[0][0] > found[1][0] and found[0][0] > found[2][0]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_batch_does_not_matter(folder: Path, ours: CrystalLM, batch_size: int) -> None:
    other = CrystalLM(ours.completer, batch_size=batch_size)
    requests = asked("loglikelihood", PAIRS)
    for one, another in zip(other.loglikelihood(requests), ours.loglikelihood(requests), strict=True):
        assert one == (pytest.approx(another[0], abs=1e-4), another[1])


def test_whole_texts(ours: CrystalLM, theirs: Any) -> None:
    texts = [("ka per mi",), ("mi ren ul sho " * 60,), ("",)]
    got = ours.loglikelihood_rolling(asked("loglikelihood_rolling", texts))
    assert got == pytest.approx(theirs.loglikelihood_rolling(asked("loglikelihood_rolling", texts)), abs=1e-2)
    assert got[0] < 0 and got[2] == 0


def test_completions(ours: CrystalLM, theirs: Any) -> None:
    """lm-eval's decoder loses a space at the beginning of a completion; ours keeps it."""
    prompts = ["ka to", "def f(x):", "mi", "ul sho per ing", "ka per " * 30]
    options = {"until": ["ren", "\n\n"], "max_gen_toks": 20, "do_sample": False}
    got = ours.generate_until(asked("generate_until", [(prompt, options) for prompt in prompts]))
    alone = [theirs.generate_until(asked("generate_until", [("</s>" + prompt, dict(options))]))[0] for prompt in prompts]
    assert [text.removeprefix(" ") for text in got] == [text.removeprefix(" ") for text in alone]
    assert len(set(got)) > 2 and all("ren" not in text for text in got)


def test_each_request_has_its_own_options(ours: CrystalLM) -> None:
    (whole,) = ours.generate_until(asked("generate_until", [("ka to", {"max_gen_toks": 12})]))
    stop = whole[len(whole) // 2]
    options = [{"max_gen_toks": 12, "until": stop}, {"max_gen_toks": 12, "until": None, "num_beams": 1}, {"max_new_tokens": 3}]
    cut, again, short = ours.generate_until(asked("generate_until", [("ka to", given) for given in options]))
    assert cut == whole[: whole.index(stop)] and again == whole and whole.startswith(short) and len(short) < len(whole)
    warm = {"max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    drawn = [ours.generate_until(asked("generate_until", [("ka to", warm)] * 2)) for _ in range(2)]
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]
    with pytest.raises(UserError, match="top_k"):
        ours.generate_until(asked("generate_until", [("ka to", {"top_k": 5})]))


@pytest.mark.parametrize("size", ["auto", 0, "-1"])
def test_a_batch_size_is_a_count(ours: CrystalLM, size: Any) -> None:
    with pytest.raises(UserError, match=f"batch_size={size}"):
        CrystalLM(ours.completer, batch_size=size)


def test_lm_eval_knows_it_by_name(folder: Path) -> None:
    from lm_eval.api.registry import get_model

    made = get_model("crystal").create_from_arg_string(f"checkpoint={folder}", {"batch_size": "2", "device": "cpu"})
    assert isinstance(made, CrystalLM) and made.batch_size == 2 and made.max_length == 64


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of lm-eval tasks: choices that need no hub, the same beside a task of programs, and one whose data are nowhere."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"ka {i}", "choices": ["to", "miren ul", "sho"], "label": i % 3} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}, "test_split": "test"}
    choice = {"output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "label", "doc_to_choice": "choices"}
    choice |= {"metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]}
    metadata = {"metadata": {"version": 1.5}, "fewshot_split": "test"}
    for name in ("crystal_one", "crystal_two"):
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | local | choice | metadata))  # JSON is YAML
    both = {"group": "crystal_both", "task": ["crystal_one", "crystal_two"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "both.yaml").write_text(json.dumps(both | {"metadata": {"version": 3}}))
    (folder / "gone.yaml").write_text(json.dumps({"task": "crystal_gone", "dataset_path": "crystal/gone", "test_split": "test"} | choice))
    unsafe = {"task": "crystal_unsafe", "unsafe_code": True} | local | choice
    (folder / "unsafe.yaml").write_text(json.dumps(unsafe))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Data sets are kept below the test's folder."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    yield


def test_a_task_is_scored(ours: CrystalLM, tasks: Path) -> None:
    task = LmEvalTask("crystal_one", shots=2, metric="acc_norm", limit=9, include=str(tasks))
    scores = task.evaluate(ours.completer, batch_size=4, seed=1)
    assert json.loads(json.dumps(scores)) == scores
    assert (scores["benchmark"], scores["status"], scores["metric"]) == ("crystal_one", "scored", "acc_norm,none")
    assert (scores["version"], scores["shots"], scores["problems_total"], scores["subtasks"]) == ("1.5", 2, 9, {})
    assert scores["score"] == scores["metrics"]["acc_norm,none"] and scores["score"] * 9 == pytest.approx(round(scores["score"] * 9))
    low, high = scores["ci95"]
    assert (low + high) / 2 == pytest.approx(scores["score"]) and high - low == pytest.approx(2 * 1.96 * scores["stderr"], rel=1e-3) != 0
    assert LmEvalTask("crystal_one", include=str(tasks)).evaluate(ours.completer, batch_size=4, seed=1)["metric"] == "acc,none"


def test_the_score_is_that_of_lm_evals_own_model(ours: CrystalLM, theirs: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    encode = theirs.tok_encode
    monkeypatch.setattr(theirs, "tok_encode", lambda text, **options: encode("</s>" + text, **options))
    found = simple_evaluate(theirs, tasks=["crystal_one"], num_fewshot=1, task_manager=TaskManager(include_path=str(tasks)))
    scores = LmEvalTask("crystal_one", shots=1, include=str(tasks)).evaluate(ours.completer, batch_size=4, seed=1)
    expected = found["results"]["crystal_one"]
    assert scores["metrics"] == {name: expected[name] for name in scores["metrics"]}


def test_a_group_has_its_tasks_scores(ours: CrystalLM, tasks: Path) -> None:
    scores = LmEvalTask("crystal_both", shots=0, include=str(tasks)).evaluate(ours.completer, batch_size=4, seed=1)
    assert set(scores["subtasks"]) == {"crystal_one", "crystal_two"} and scores["problems_total"] == 24 and scores["version"] == "3"
    assert scores["score"] == pytest.approx(scores["subtasks"]["crystal_one"])


def test_data_that_are_nowhere_are_absent(ours: CrystalLM, tasks: Path) -> None:
    with pytest.raises(BenchmarkAbsent, match="crystal_gone could not be had"):
        LmEvalTask("crystal_gone", include=str(tasks)).evaluate(ours.completer, batch_size=4, seed=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "crystal_none"}, "no task crystal_none"),
        ({"task": "crystal_one", "metric": "bleu"}, "metric=bleu of crystal_one; expected one of acc,none, acc_norm,none"),
        ({"task": "crystal_unsafe"}, "outside of any sandbox"),
        ({"task": "crystal_one", "limit": 0}, "limit=0 of crystal_one"),
        ({"task": "crystal_one", "shots": -1}, "shots=-1 of crystal_one"),
    ],
)
def test_what_the_user_can_mend(ours: CrystalLM, tasks: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LmEvalTask(**options, include=str(tasks)).evaluate(ours.completer, batch_size=4, seed=1)

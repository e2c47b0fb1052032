"""A run directory made up for the tests: three stages, eleven sources, written the way the trainer writes it.

The surprise: the numbers are a formula, so a test can name the value it expects on the page.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crystal.runlog import write_json

ROW = 1024
TEXT = ("CommonCrawl", "C4", "Github", "ArXiv", "Book", "Wikipedia", "StackExchange")
CODE = ("python", "html", "javascript", "css")
SOURCES = (*(f"RedPajama{name}" for name in TEXT), *(f"starcoder/{name}" for name in CODE))
STAGES = (("1", 150, 0.012), ("2", 400, 0.0087825), ("3", 52, 0.002))  # name, steps, peak learning rate
BATCH = 8


def make_run(folder: Path, *, stages: Sequence[str] = ("1", "2", "3"), log_every: int = 1) -> Path:
    """Write a complete run of these stages, and return its directory."""
    steps = {name: count for name, count, _ in STAGES}
    write_json(folder / "run.json", run_json())
    write_json(folder / "data.json", data_json())
    (folder / "config.yaml").write_text("model: tiny\n")
    lines: list[dict[str, Any]] = []
    before = 0
    for name, count, peak in STAGES:
        if name in stages:
            lines += metrics(name, count, peak, before, log_every)
            write_stage(folder / f"stage{name}", name, count)
        before += steps[name]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run_json() -> dict[str, Any]:
    return {
        "name": "tiny-sample", "created": "2025-11-20T09:14:05+00:00", "crystal": "0.1.0", "git": "4f1c2ab",
        "command": "python -m crystal task=train stage=all model=tiny data=sample backend=auto",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.3.1"}, "device": "8-core laptop CPU",
        "backend": "cpu", "dtype": "float32", "threads": 8, "ranks": 1,
        "model": {"name": "tiny", "d_model": 256, "n_layers": 4}, "n_parameters": 11_350_272, "seq_len": ROW,
        "batch_rows": BATCH, "scale": "minutes",
    }  # fmt: skip


def data_json() -> dict[str, Any]:
    part = {"documents": 100, "tokens": 300_000, "text_bytes": 1_000_000, "rows": 290}
    held = {"documents": 5, "tokens": 9_000, "text_bytes": 30_000, "rows": 9}
    label = "stand-ins for SlimPajama and StarCoderData; results say nothing about a model trained on those"
    return {"label": label, "train": {name: part for name in SOURCES}, "valid": {name: held for name in SOURCES}}


def loss_at(step: int) -> float:
    """Loss after `step` updates of the whole run, nats per token."""
    return 2.9 + 4.1 * math.exp(-step / 90) + 21 * math.exp(-step / 3)


def metrics(stage: str, count: int, peak: float, before: int, log_every: int) -> Iterator[dict[str, Any]]:
    noise = random.Random(int(stage))
    for step in range(0, count, log_every):
        done = (step + 1) * BATCH * ROW
        yield {
            "kind": "train", "stage": stage, "step": step, "tokens": done,
            "loss": loss_at(before + step) * (1 + 0.04 * noise.gauss(0, 1)),
            "lr": peak * (step / 5 if step < 5 else 1 - 0.97 * step / count), "grad_norm": 0.8,
            "tokens_per_s": 8100 + 300 * noise.gauss(0, 1) - 900 * (step == 0), "elapsed_s": step * 1.01,
        }  # fmt: skip
        if (step + 1) % 40 == 0 or step + log_every >= count:
            yield {
                "kind": "valid", "stage": stage, "step": step + 1, "tokens": done,
                "loss": {name: 1.05 * loss_at(before + step) + i / 10 for i, name in enumerate(SOURCES)},
                "bits_per_byte": {name: bits(name, stage, before + step) for name in SOURCES},
            }  # fmt: skip


def bits(source: str, stage: str, step: int) -> float:
    learned = -0.25 if source.startswith("starcoder") and stage > "1" else 0.0
    return 0.42 * loss_at(step) + SOURCES.index(source) / 14 + learned


def write_stage(folder: Path, name: str, steps: int) -> None:
    samples = steps * BATCH
    weights = [0.3, 0.2, 0.05, 0.05, 0.04, 0.03, 0.03, 0.15, 0.06, 0.06, 0.03]
    write_json(folder / "summary.json", {
        "stage": name, "status": "complete", "steps": steps, "tokens": samples * ROW, "optimizer": "fresh",
        "init_from": None if name == "1" else f"stage{int(name) - 1}/checkpoints/last",
        "checkpoint": f"checkpoints/step-{steps:08d}", "fim": {"rate": 0.0 if name == "1" else 0.9, "spm": 0.5},
        "redistributed": ["starcoder/julia"] if name == "3" else [],
        "mixture": [
            {"name": source, "parts": [f"{source}/even" if source.startswith("Red") else source], "weight": weight,
             "rows": 290 if i else 12, "samples": round(weight * samples), "fim": source.startswith("star"),
             "epochs": round(weight * samples) / (290 if i else 12)}
            for i, (source, weight) in enumerate(zip(SOURCES, weights, strict=True))
        ],
    })  # fmt: skip
    (folder / "config.yaml").write_text(f"stage: '{name}'\n")
    write_json(folder / "scores/humaneval.json", humaneval(int(name)))
    write_json(folder / "scores/mbpp.json", {
        "benchmark": "mbpp", "status": "absent", "reason": "no problems file: give eval.mbpp=FILE"})  # fmt: skip
    write_json(folder / "scores/baselines.json", {
        "source": "starcoder/python", "train_tokens": 300_000, "valid_tokens": 9_000, "unigram": {"loss": 6.412},
        "bigram": {"loss": 4.204}, "model": {"loss": {"1": 4.518, "2": 3.377, "3": 3.291}[name]}})  # fmt: skip


def humaneval(passed: int) -> dict[str, Any]:
    """Scores with the first `passed` of 164 problems solved."""
    share = passed / 164
    problems = [
        {"task_id": f"HumanEval/{i}", "passed": i < passed, "result": "passed" if i < passed else "failed",
         "reason": None if i < passed else "AssertionError", "completion": completion(i, passed)}
        for i in range(164)
    ]  # fmt: skip
    return {
        "benchmark": "humaneval", "status": "scored", "source": "HumanEval.jsonl.gz", "version": "1.0",
        "problems_total": 164, "samples_per_problem": 1, "pass@1": share, "passed": passed,
        "ci95": [max(0.0, share - 0.009), share + 0.031], "seconds": 61.0,
        "protocol": {"temperature": 0.2, "top_p": 0.95, "max_new_tokens": 256, "seed": 1, "timeout_s": 3.0},
        "sandbox": "process, rlimits, no network", "problems": problems,
    }  # fmt: skip


def completion(task: int, passed: int) -> str:
    if task < passed:
        return f"    return [x for x in numbers if x < {task} & True]\n"
    return "    for i in numbers:\n        if i > <b>0</b> & True:\n            return False\n    return True\n" * 9

"""Scores between stages: HumanEval and MBPP on a checkpoint, and the n-gram models that any training must beat.

The surprise: a benchmark is scored again only when its protocol has changed; a file of scores is proof that it was done.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate

from benchmarks.code.execution import Limits, Pool
from benchmarks.code.problems import BenchmarkAbsent, Problem
from benchmarks.code.score import Complete, absent, score
from crystal.checkpoint import fingerprint
from crystal.config import EvalConfig, UserError
from crystal.data.loader import Change, Entry, Loader
from crystal.data.ngram import ngram_losses
from crystal.data.shards import Prepared
from crystal.generate import Completer
from crystal.runlog import read_json, read_lines, write_json
from stages.heldout import PYTHON
from stages.open_llm import open_llm_average

DRAWN = ("max_new_tokens", "temperature", "top_p", "n_samples")
MAX_NGRAM_TOKENS = 20_000_000
BLOCK_ROWS = 256


def score_checkpoint(
    folder: Path, config: EvalConfig, *, out: Path, sandbox: str, load: Callable[[], Completer]
) -> dict[str, dict[str, Any]]:
    """Score the checkpoint in `folder` on every configured benchmark; writes `out`/NAME.json and returns them by name.

    load: its model, asked for only where something is to be scored. What cannot be had, and where nothing isolates programs, is recorded
    as absent, with the reason.
    """
    results = {}
    for name, node in config.benchmarks.items():
        path = out / f"{name}.json"
        before = read_json(path, {})
        try:
            benchmark = instantiate(node, **({} if config.limit is None else {"limit": config.limit}))
            weights, version = fingerprint(folder), getattr(benchmark, "version", None)
            key = protocol_key(config, name, weights=weights, version=version, sandbox=sandbox)
            facts = {"checkpoint": folder.name, "weights": weights, "seed": config.seed}
            kept = out / "earlier" / f"{name}-{key}.json"
            found = next((scores for scores in (before, read_json(kept, {})) if _answers(scores, key, sandbox)), None)
            results[name] = found or _score(benchmark, config, path, key=key, facts=facts, sandbox=sandbox, load=load)
            if found is not before:
                if before.get("status") == "scored":  # asked otherwise, and too dear to lose
                    write_json(out / "earlier" / f"{name}-{before['protocol'].get('key')}.json", before)
                write_json(path, results[name])
        except BenchmarkAbsent as reason:
            found, results[name] = None, absent(name, str(reason), path if before.get("status") != "scored" else None)
        _tell(results[name], known=found is not None)
    if (mean := open_llm_average(results.values())) is not None:
        print(f"  open_llm: {mean:.2%}, the mean of the four as the Open LLM leaderboard took it")
    return results


def _answers(scores: dict[str, Any], key: str, sandbox: str) -> bool:
    """Whether these scores are those asked for; a layer that is asked for by name is to be the one that judged."""
    asked = scores.get("status") == "scored" and scores["protocol"].get("key") == key
    return asked and sandbox in ("auto", scores.get("sandbox", {}).get("layer", sandbox))


def _score(
    benchmark: Any, config: EvalConfig, out: Path, *, key: str, facts: dict[str, Any], sandbox: str, load: Callable[[], Completer]
) -> dict[str, Any]:
    if hasattr(benchmark, "evaluate"):  # a task of lm-eval, which asks and judges by itself
        scores = benchmark.evaluate(load(), batch_size=config.batch_size, seed=config.seed) | facts | {"protocol": {"key": key}}
        write_json(out, scores)
        return scores
    with _pool(Limits(benchmark.timeout_s or config.timeout_s), config, sandbox) as pool:  # opened first, as it may be refused
        return score(
            benchmark,
            _complete(load(), config),
            pool=pool,
            protocol=config.protocol,
            n_samples=config.n_samples,
            ks=config.pass_ks,
            drawn={name: getattr(config, name) for name in DRAWN} | {"key": key},
            facts=facts,
            out=out,
        )


def protocol_key(config: EvalConfig, name: str, *, weights: str, version: str | None, sandbox: str) -> str:
    """What a score on file must bear to be taken for the one asked for: all that decides its completions and how they are judged.

    Not which layer isolates: layers differ in what they withstand, and their verdicts on programs that write files, start processes or
    send themselves signals only. But a score of sandbox=unsafe does not stand for one of a sandbox.
    """
    asked = {key: value for key, value in asdict(config).items() if key not in ("benchmarks", "batch_size", "device", "workers")}
    asked |= {"benchmark": config.benchmarks[name], "version": version, "weights": weights, "unsafe": sandbox == "unsafe"}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _pool(limits: Limits, config: EvalConfig, sandbox: str) -> Pool:
    try:
        return Pool(limits, workers=config.workers, sandbox=sandbox)
    except UserError as error:
        raise BenchmarkAbsent(str(error)) from error


def _complete(completer: Completer, config: EvalConfig) -> Complete:
    def complete(problems: list[Problem], keys: list[str]) -> list[str]:
        seeds = [int.from_bytes(hashlib.sha256(f"{config.seed}/{key}".encode()).digest()[:7], "little") for key in keys]
        stops = [problem.stops for problem in problems]
        pairs = [(problem.prompt, problem.suffix) for problem in problems if problem.suffix is not None]
        if not pairs:
            texts = completer.complete([problem.prompt for problem in problems], config.sampling, stops=stops, seeds=seeds)
            return [completer.alone(text) if problem.alone else text for problem, text in zip(problems, texts, strict=True)]
        assert len(pairs) == len(problems), "a benchmark asks in one way"
        return completer.infill(pairs, config.sampling, stops=stops, seeds=seeds)

    return complete


def _tell(scores: dict[str, Any], *, known: bool) -> None:
    if scores["status"] == "absent":
        print(f"  {scores['benchmark']}: not scored: {scores['reason']}", file=sys.stderr)
        return
    took = "scored before" if known else f"{scores['seconds']:.0f} s"
    if "pass@1" not in scores:
        print(f"  {scores['benchmark']}: {scores['metric'].partition(',')[0]} {scores['score']:.2%}, {took}")
        return
    low, high = scores["ci95"]
    more = "".join(f", pass@{k} {rate:.2%}" for k, rate in scores.get("pass@k", {}).items() if k != "1")
    first = f" of the first {limit} problems" if (limit := scores["protocol"].get("limit")) else ""
    print(
        f"  {scores['benchmark']}: pass@1 {scores['pass@1']:.2%} (95 % interval {low:.1%} to {high:.1%}){more}, {scores['passed']} of "
        f"{scores['problems_total'] * scores['samples_per_problem']} completions{first} passed, {took}"
    )


def write_baselines(path: Path, prepared: Prepared, *, metrics: Path, stage: str) -> None:
    """Unigram and bigram models of the very rows that the run was trained on so far, scored on held-out Python beside the model.

    FIM is left out: the n-grams see every row as it was written. Without held-out Python nothing is written.
    """
    if not prepared.valid.get(PYTHON, {}).get("rows"):
        return
    valid = prepared.valid_rows(PYTHON)
    losses = ngram_losses(
        _trained_rows(metrics.parent, prepared, upto=stage), [valid[np.arange(len(valid))]], vocab_size=prepared.vocab_size,
        pad_id=prepared.fim_ids.pad, max_train_tokens=MAX_NGRAM_TOKENS,
    )  # fmt: skip
    model = [line["loss"][PYTHON] for line in read_lines(metrics) if line["kind"] == "valid" and line["stage"] == stage]
    write_json(path, {"source": PYTHON, **losses, "model": {"loss": model[-1]}})


def _trained_rows(run_dir: Path, prepared: Prepared, *, upto: str) -> Iterator[np.ndarray]:
    """The rows of the complete stages up to `upto`, by the mixtures that their summaries record."""
    for path in sorted(run_dir.glob("stage*/summary.json")):
        summary = json.loads(path.read_text())
        if summary["stage"] > upto:
            return
        changes = [Change(change["first_sample"], tuple(_entries(change["mixture"]))) for change in summary.get("changes", [])]
        loader = Loader(prepared, _entries(summary["mixture"]), seed=summary["seed"], batch_rows=1, changes=changes)
        n_samples = summary["tokens"] // prepared.seq_len
        for first in range(0, n_samples, BLOCK_ROWS):
            yield loader.rows(first, min(BLOCK_ROWS, n_samples - first))


def _entries(mixture: list[dict[str, Any]]) -> list[Entry]:
    return [Entry(e["name"], e["parts"], e["weight"], slice=tuple(e["slice"])) for e in mixture]

"""Scores between stages: HumanEval and MBPP on a checkpoint, and the n-gram models that any training must beat.

The surprise: a benchmark is scored again only when its protocol has changed; a file of scores is proof that it was done.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate

from benchmarks.code.problems import BenchmarkAbsent
from benchmarks.code.score import absent, score
from crystal.config import EvalConfig
from crystal.data.loader import Change, Entry, Loader
from crystal.data.ngram import ngram_losses
from crystal.data.shards import Prepared
from crystal.generate import Completer
from crystal.runlog import read_json, read_lines, write_json

PYTHON = "starcoder/python"  # HumanEval and MBPP are Python
MAX_NGRAM_TOKENS = 20_000_000
BLOCK_ROWS = 256


def score_checkpoint(folder: Path, config: EvalConfig, *, out: Path, device: str) -> dict[str, dict[str, Any]]:
    """Score the checkpoint in `folder` on every configured benchmark; writes `out`/NAME.json and returns them by name."""
    results, completer = {}, None
    protocol = {key: value for key, value in asdict(config).items() if key not in ("benchmarks", "batch_size", "device")}
    for name, node in config.benchmarks.items():
        asked = json.dumps(protocol | {"benchmark": node, "checkpoint": folder.name}, sort_keys=True)
        path, key = out / f"{name}.json", hashlib.sha256(asked.encode()).hexdigest()[:16]
        before = read_json(path, {})
        if before.get("status") == "scored" and before["protocol"].get("key") == key:
            results[name] = before
        else:
            try:
                benchmark = instantiate(node)
                completer = completer or Completer.load(folder, device=device)
                results[name] = score(
                    benchmark,
                    _complete(completer, config),
                    n_samples=config.n_samples,
                    timeout_s=config.timeout_s,
                    workers=None,
                    protocol=protocol | {"key": key},
                    out=path,
                )
            except BenchmarkAbsent as reason:
                results[name] = before if before.get("status") == "scored" else absent(name, str(reason), path)
        _tell(results[name])
    return results


def _complete(completer: Completer, config: EvalConfig) -> Any:
    def complete(prompts: Sequence[str], stops: Sequence[tuple[str, ...]], keys: Sequence[str]) -> list[str]:
        seeds = [int.from_bytes(hashlib.sha256(f"{config.seed}/{key}".encode()).digest()[:7], "little") for key in keys]
        return completer.complete(prompts, config.sampling, stops=stops, seeds=seeds)

    return complete


def _tell(scores: dict[str, Any]) -> None:
    if scores["status"] == "absent":
        print(f"  {scores['benchmark']}: not scored: {scores['reason']}", file=sys.stderr)
        return
    low, high = scores["ci95"]
    print(
        f"  {scores['benchmark']}: pass@1 {scores['pass@1']:.2%} (95 % interval {low:.1%} to {high:.1%}), {scores['passed']} of "
        f"{scores['problems_total'] * scores['samples_per_problem']} completions passed, {scores['seconds']:.0f} s"
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

"""`python -m tests.main_job runs/tiny-sample`: has the main job learned? Continuous integration runs it after `make run`.

Fails unless three stages are trained and each is scored on all 164 HumanEval problems, the report is written, the loss on held-out
Python is below a unigram's and a bigram's of the same training rows and below that of stage 1, and in each stage the mean loss of the
last tenth of the steps is below that of the second tenth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

from crystal.runlog import read_lines

PYTHON = "starcoder/python"


def check(run: Path) -> None:
    lines = read_lines(run / "metrics.jsonl")
    final = {line["stage"]: line["loss"][PYTHON] for line in lines if line["kind"] == "valid"}
    for stage in "123":
        losses = [line["loss"] for line in lines if line["kind"] == "train" and line["stage"] == stage]
        tenth = len(losses) // 10
        second, last = fmean(losses[tenth : 2 * tenth]), fmean(losses[-tenth:])
        scores = json.loads((run / f"stage{stage}" / "scores" / "humaneval.json").read_text())
        print(f"stage {stage}: second tenth {second:.3f}, last tenth {last:.3f}; held-out Python {final[stage]:.3f}; "
              f"HumanEval pass@1 {scores['pass@1']:.1%} of {scores['problems_total']}")  # fmt: skip
        assert last < second, f"stage {stage} has not learned"
        assert scores["problems_total"] == 164 and scores["protocol"]["max_new_tokens"] >= 128
    counted = json.loads((run / "stage3" / "scores" / "baselines.json").read_text())
    unigram, bigram = counted["unigram"]["loss"], counted["bigram"]["loss"]
    print(f"held-out Python: {final['3']:.3f}; of the same {counted['train_tokens']:,} tokens: unigram {unigram:.3f}, bigram {bigram:.3f}")
    assert final["3"] < min(unigram, bigram, final["1"])
    assert (run / "report" / "index.html").exists() and (run / "report" / "report.md").exists()


if __name__ == "__main__":
    check(Path(sys.argv[1]))

"""Any task of EleutherAI's lm-evaluation-harness on a Crystal checkpoint: ARC, HellaSwag, MMLU, TruthfulQA and the rest.

`model` is what the harness asks; `tasks` is a benchmark for `task=evaluate`; `python -m benchmarks.language` is the harness's own
command line, with `--model crystal`.
"""

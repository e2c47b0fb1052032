"""HumanEval, MBPP and what is made of them: problems, protocols, a sandbox, pass@k with its interval.

One question each: `problems`, `infill` and `evalplus` (what is asked, and what decides), `protocols` (how it is put to a model, and where
an answer ends), `execution` (does a program pass; the sandbox is behind this seam), `score` (how many do). Nothing here knows a model:
completions come from a callable.
"""

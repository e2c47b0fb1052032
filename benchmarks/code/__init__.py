"""HumanEval and MBPP: problems, a process of its own for every program, pass@1 with its interval.

Three files, one question each: `problems` (what is asked, and what makes a program of an answer), `execution` (does a
program pass; the sandbox is behind this seam), `score` (how many do). Nothing here knows a model: completions come from
a callable.
"""

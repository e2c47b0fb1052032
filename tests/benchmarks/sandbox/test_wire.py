"""Values cross and are what they were; whatever else arrives is Malformed, at little cost."""

from __future__ import annotations

import json
import math
import random
import socket
import sys
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.code.sandbox.values import Decoder, Encoder
from benchmarks.code.sandbox.wire import MAX_MESSAGE, End, Gone, Malformed


class Proxy:
    def __init__(self, end: End) -> None:
        self.end = end


@pytest.fixture
def line() -> Iterator[tuple[End, socket.socket]]:
    """An end, and the bare other side of its line."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield End(ours, {}, Proxy), theirs


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    """Two ends; the second answers."""
    ours, theirs = socket.socketpair()
    with theirs:
        asking = End(ours, {"call": lambda f, *rest: f(*rest)}, Proxy)
        answering = End(theirs, {"same": lambda x: x, "do": lambda f, x: f(x)}, Proxy)
        thread = threading.Thread(target=answering.serve)
        thread.start()
        yield asking, answering
        ours.close()
        thread.join()


def across(value: Any) -> Any:
    """`value` as the other side has it."""
    one, other = (End(0, {}, Proxy) for _ in range(2))
    encoder = Encoder(one.references)
    encoded = [encoder.value(value), encoder.states()]
    value, states = json.loads(json.dumps(encoded, ensure_ascii=False))
    return Decoder(other.references, states).value(value)


def alike(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return all(map(alike, one, other)) and all(map(alike, one.values(), other.values()))
    return one.hex() == other.hex() if isinstance(one, float) else one == other  # zeros have signs, and NaN is NaN


ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(1 << 300), 1 << 300), st.floats(allow_nan=False), st.binary(),
    st.text(st.characters(exclude_categories=())), st.complex_numbers(allow_nan=False), st.decimals(allow_nan=False), st.fractions(),
    st.dates(), st.datetimes(), st.times(), st.timedeltas(), st.just(...), st.sampled_from([int, str, list, ValueError, math, random]),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 9)),
)  # fmt: skip
KEYS = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=4)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists, mappings = st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=3)
    return st.one_of(
        lists, lists.map(tuple), lists.map(deque), st.sets(KEYS, max_size=4), mappings, mappings.map(OrderedDict), mappings.map(Counter),
        mappings.map(lambda pairs: defaultdict(int, pairs)), st.binary().map(bytearray), mappings.map(lambda pairs: pairs.keys()),
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.recursive(ATOMS, containers, max_leaves=12))
def test_a_value_is_the_same_on_the_other_side(value: Any) -> None:
    assert alike(value, across(value))


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        (IntEnum("Colour", "RED")(1), 1),
        (type("Text", (str,), {"__eq__": lambda self, other: True, "__hash__": None})("x"), "x"),
        (type("Number", (int,), {"__int__": lambda self: 42, "__index__": lambda self: 42})(7), 7),
        (type("Real", (float,), {"__float__": lambda self: 4.2})(0.7), 0.7),
        (type("List", (list,), {"__iter__": lambda self: iter([42])})([7]), [7]),
        (type("Dict", (dict,), {"items": lambda self: [(4, 2)]})({7: 7}), {7: 7}),
        (math.nan, math.nan),
        (-0.0, -0.0),
        (10**5000, 10**5000),
        ("\ud83d\ude00 \udc80", "\ud83d\ude00 \udc80"),
        (defaultdict(list, {1: [2]}), defaultdict(list, {1: [2]})),
        (deque([1, 2], 2), deque([1, 2], 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_special_values(value: Any, arrives: Any) -> None:
    found = across(value)
    assert alike(found, arrives)
    assert getattr(found, "maxlen", None) == getattr(arrives, "maxlen", None)


def test_what_is_not_plain_data_has_one_proxy() -> None:
    thing, deep = object(), ()
    for _ in range(300):
        deep = (deep,)
    first, again, function, module = across([thing, thing, len, sys.modules[__name__]])
    assert isinstance(first, Proxy) and again is first
    assert isinstance(function, Proxy) and isinstance(module, Proxy) and function is not module
    innermost = across(deep)
    while isinstance(innermost, tuple):
        (innermost,) = innermost
    assert isinstance(innermost, Proxy)


def test_aliases_cycles_and_depth_survive() -> None:
    row = [0]
    ring: list[Any] = [row, row, {"row": (row,)}]
    ring.append(ring)
    found = across(ring)
    assert found[0] is found[1] is found[2]["row"][0] and found[3] is found
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    found = across(deep)
    for _ in range(5_000):
        (found,) = found
    assert found == []


def test_arguments_come_back_changed_and_are_recognized(ends: tuple[End, End]) -> None:
    asking, answering = ends
    inner = [3, 1, 2]
    outer, marks = [inner, {"a": {1}}], {5}

    def change(arguments: Any) -> Any:
        (first, second), marks = arguments
        first.sort()
        second["a"].add(2)
        second["new"] = first
        marks.clear()
        return second["a"], arguments

    answering.references.keep(change)
    found, arguments = asking.ask("do", asking.references.proxy_of(0), (outer, marks))
    assert inner == [1, 2, 3] and outer[0] is inner and outer[1]["new"] is inner and marks == set()
    assert found is outer[1]["a"] and found == {1, 2} and arguments[0] is outer


def test_they_come_back_changed_from_a_call_that_raises_too(ends: tuple[End, End]) -> None:
    asking, answering = ends
    answering.references.keep(lambda items: items.clear() or items.fail)
    items = [1]
    with pytest.raises(AttributeError, match="'list' object has no attribute 'fail'"):
        asking.ask("do", asking.references.proxy_of(0), items)
    assert items == []


def test_unchanged_arguments_keep_their_identity(ends: tuple[End, End]) -> None:
    items = [nan := float("nan"), 10**30, ()]
    assert ends[0].ask("same", items) is items and items[0] is nan


class Odd(KeyError):
    def __str__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 3), KeyError("x"), OSError(2, "No such file"), SystemExit(3), AssertionError(), RecursionError("deep"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), SyntaxError("bad", ("f", 1, 2, "text", 1, 3)), Odd(1), KeyboardInterrupt(),
    ],
)  # fmt: skip
def test_an_exception_is_raised_as_its_nearest_builtin(ends: tuple[End, End], error: BaseException) -> None:
    asking, answering = ends

    def fail(_: Any) -> None:
        raise error

    answering.references.keep(fail)
    with pytest.raises(KeyError if type(error) is Odd else type(error)) as caught:
        asking.ask("do", asking.references.proxy_of(0), None)
    assert str(caught.value) == str(error) and caught.value.args == error.args
    assert type(caught.value).__name__ == type(error).__name__


def test_an_end_answers_while_it_waits(ends: tuple[End, End]) -> None:
    asking, answering = ends
    proxy_of_theirs = asking.references.proxy_of(0)
    answering.references.keep(lambda number: answering.ask("call", answering.references.proxy_of(0), number + 1))
    asking.references.keep(lambda number: 10 * number)
    assert asking.ask("do", proxy_of_theirs, 4) == 50


def test_frames_arrive_whole_however_they_are_cut(line: tuple[End, socket.socket]) -> None:
    end, other = line
    frames = b"".join(framed(["answer", text, []]) for text in ("a" * 300_000, "b", "é"))

    def trickle() -> None:
        cuts = sorted(random.Random(0).sample(range(len(frames)), 30))
        for first, last in zip([0, *cuts], [*cuts, len(frames)], strict=True):
            other.sendall(frames[first:last])
        other.close()

    thread = threading.Thread(target=trickle)
    thread.start()
    assert [end.result() for _ in range(3)] == ["a" * 300_000, "b", "é"]
    with pytest.raises(Gone):
        end.result()
    thread.join()


def framed(message: Any) -> bytes:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


HOSTILE = {
    "no JSON": b"{]",
    "no UTF-8": b'["answer", "\xff", []]',
    "empty": b"",
    "an object": {"answer": 1},
    "no list": 3,
    "no word": [],
    "an unknown word": ["verdict", "passed", []],
    "too short": ["answer", 1],
    "too long": ["answer", 1, [], []],
    "a dict inside": ["answer", {"a": 1}, []],
    "states of a number": ["answer", 1, 3],
    "an unknown tag": ["answer", ["eval", "1"], []],
    "an unhashable tag": ["answer", [[]], []],
    "an empty tag": ["answer", [], []],
    "a list without a number": ["answer", ["list", 1], []],
    "a tuple with a number": ["answer", ["@", 0], [["tuple", 1]]],
    "a container that is not there": ["answer", ["@", 0], []],
    "a negative container": ["answer", ["@", -1], [["list"]]],
    "a state of nothing": ["answer", 1, [None]],
    "an object that was not given": ["answer", ["yours", 0], []],
    "a negative object": ["answer", ["yours", -1], []],
    "a list in a set": ["answer", ["@", 0], [["set", ["@", 1]], ["list"]]],
    "a list in a frozenset": ["answer", ["frozenset", ["@", 0]], [["list"]]],
    "a key without a value": ["answer", ["@", 0], [["dict", 1]]],
    "a function": ["answer", ["class", "eval"], []],
    "a loader": ["answer", ["class", "__loader__"], []],
    "a module of ours": ["answer", ["module", "benchmarks"], []],
    "a module that acts": ["answer", ["module", "antigravity"], []],
    "a fraction of a word": ["answer", ["Fraction", "1e999999999"], []],
    "a fraction of nothing": ["answer", ["Fraction", 1, 0], []],
    "a deque beyond bounds": ["answer", ["@", 0], [["deque", 10**30]]],
    "bytes by the number": ["answer", ["bytes", 10**12], []],
    "a bytearray by the number": ["answer", ["@", 0], [["bytearray", 10**12]]],
    "a word for an integer": ["answer", ["int", "xyz"], []],
    "decimal digits beyond bounds": b'["answer", ' + b"9" * 5000 + b", []]",
    "a range without a step": ["answer", ["range", 0, 1, 0], []],
    "a date that is none": ["answer", ["date", "2024-02-30"], []],
    "deep lists": b"[" * 100_000,
    "deep tuples": b'["answer", ' + b'["tuple", ' * 5_000 + b"]" * 5_000 + b", []]",
    "tuples that nothing sends": ["answer", json.loads('["tuple",' * 102 + "1" + "]" * 102), []],
    "no exception": ["raise", 1, []],
    "an exception of no class": ["raise", ["tuple", ["tuple", "int"], ["tuple"], "", ""], []],
    "an exception with a number for a reason": ["raise", ["tuple", ["tuple", "ValueError"], ["tuple"], "", 3], []],
    "a class with a strange name": ["raise", ["tuple", ["tuple", "a\0b", "ValueError"], ["tuple"], "", ""], []],
    "a question without a name": ["ask", 1, []],
    "a question that has no answer": ["ask", "getattr", ["tuple"], []],
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_answer_is_malformed_and_stays_so(line: tuple[End, socket.socket], message: Any) -> None:
    end, other = line
    other.sendall(framed(message) + framed(["answer", 1, []]))
    for _ in range(2):
        with pytest.raises(Malformed):
            end.result()
    with pytest.raises(Malformed):
        end.ask("call")


def test_an_announced_length_beyond_the_most_is_refused_at_once(line: tuple[End, socket.socket]) -> None:
    end, other = line
    other.sendall((MAX_MESSAGE + 1).to_bytes(4, "big"))
    with pytest.raises(Malformed, match=f"{MAX_MESSAGE + 1} bytes"):
        end.result()


@pytest.mark.parametrize(
    "value",
    [["Decimal", "1e999999999"], ["range", 0, 10**400, 1], ["int", "f" * 1_000_000], ["timedelta", 999_999_999]],
    ids=["Decimal", "range", "int", "timedelta"],
)
def test_small_messages_make_small_values(line: tuple[End, socket.socket], value: Any) -> None:
    end, other = line
    threading.Thread(target=other.sendall, args=(framed(["answer", value, []]),)).start()
    began = time.thread_time()
    found = end.result()
    assert found != 3 and found != 0.5 and sys.getsizeof(found) < 2_000_000
    assert time.thread_time() - began < 0.5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.builds(lambda tag, rest: [tag, *rest], st.sampled_from(
        ["tuple", "list", "set", "dict", "Counter", "deque", "defaultdict", "keys", "@", "mine", "yours", "class", "module", "int", "bytes",
         "Fraction", "Decimal", "range", "slice", "complex", "date", "datetime", "timedelta", "...", "ValueError", "type"]
    ), st.lists(inner, max_size=4)),
    max_leaves=15,
)  # fmt: skip
MESSAGES = st.binary() | JSON | st.builds(
    lambda word, value, states: [word, value, states], st.sampled_from(["ask", "answer", "raise"]), JSON, st.lists(JSON, max_size=4)
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(MESSAGES)
def test_any_message_is_an_answer_an_exception_or_malformed(message: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end = End(ours, {"call": lambda target: target}, Proxy)
        theirs.sendall(framed(message))
        theirs.shutdown(socket.SHUT_WR)
        try:
            end.result()
        except (Malformed, Gone):
            assert end.broken is not None
        except BaseException as error:
            assert hasattr(error, "told") or "the program raised" in str(error)


def test_a_closed_line_is_gone(line: tuple[End, socket.socket]) -> None:
    end, other = line
    other.close()
    for _ in range(2):
        with pytest.raises(Gone):
            end.ask("call", 1)

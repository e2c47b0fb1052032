"""The process that decides: it executes the checks, in which the program's names are proxies that ask the candidate.

What a check computes, it computes here, on values that were built here: a comparison never runs code of the program. So a program passes by
answering right and by nothing else.

The surprise: a Remote, whatever in the program it stands for, equals itself alone, and only that.
"""

from __future__ import annotations

import builtins
import random
import socket
import symtable
from collections.abc import Container, Iterator
from typing import Any

from benchmarks.code.sandbox.wire import REASON_CHARS, End, Gone, Malformed, execute, reason_of

GONE = "before its last check"  # how the candidate ended stands before this; who waits for it knows


class Remote:
    """Something in the candidate: what can be done with it there can be asked for here, but comparison and arithmetic.

    `in` is comparison too: without a `__contains__`, Python looks here for an equal one among what iteration gives.
    """

    __slots__ = ("__end",)

    def __init__(self, end: End) -> None:
        object.__setattr__(self, "_Remote__end", end)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__end.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self.__end.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__end.ask("setattr", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return self.__end.ask("iter", self)

    def __next__(self) -> Any:
        return self.__end.ask("next", self)

    def __len__(self) -> int:
        return self.__end.ask("len", self)

    def __getitem__(self, key: Any) -> Any:
        return self.__end.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__end.ask("setitem", self, key, value)

    def __instancecheck__(self, value: Any) -> bool:
        return self.__end.ask("isinstance", value, self)

    def __bool__(self) -> bool:
        return self.__end.ask("bool", self)

    def __str__(self) -> str:
        return self.__end.ask("str", self)

    def __repr__(self) -> str:
        return self.__end.ask("repr", self)


def judge(channel: socket.socket | int, job: dict[str, Any]) -> dict[str, Any]:
    """The verdict on the program behind `channel`: passed, result (passed, failed, contained) and reason.

    `job`: check, and given and names where there are any (benchmarks.code.execution.Job). A reason that equals GONE is to be completed.
    """
    end = End(channel, {}, Remote)
    end.operations |= {"call": _only_given(end, _call), "next": _only_given(end, next)}
    verdict = {"passed": True, "result": "passed", "reason": ""}
    try:
        _check(end, job["check"], job.get("given", ""), job.get("names", ()))
    except BaseException as error:
        verdict = {"passed": False, "result": "failed", "reason": _line(reason_of(error)) or "an exception without a name"}
    if isinstance(end.broken, Malformed):
        return {"passed": False, "result": "contained", "reason": str(end.broken)}
    if isinstance(end.broken, Gone):
        return {"passed": False, "result": "failed", "reason": GONE}
    return verdict


def asked_names(check: str, given: Container[str]) -> tuple[str, ...]:
    """The names that `check` loads and neither it, nor `given`, nor Python defines: they are the program's.

    Where Python defines them all, they all are (MBPP/126 tests a function called `sum`). Raises SyntaxError.
    """
    module = symtable.symtable(check, "<check>", "exec")
    tables, loaded, bound = [module], set(), set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table is module or symbol.is_global():
                loaded |= {symbol.get_name()} if symbol.is_referenced() else set()
                bound |= {symbol.get_name()} if symbol.is_assigned() or symbol.is_imported() else set()
    free = sorted(name for name in loaded - bound if name not in given)
    return tuple(name for name in free if not hasattr(builtins, name)) or tuple(free)


def _check(end: End, check: str, given: str, names: tuple[str, ...]) -> None:
    """Raise unless the program passes."""
    namespace: dict[str, Any] = {"__name__": "check"}
    execute(given, "<given>", namespace)
    end.result()  # the program has come to its end
    asked = tuple(names) or asked_names(check, namespace)
    found = end.ask("names", asked)
    for name in asked:
        namespace.pop(name, None)  # what the program does not define is not there, even if what is given does
        if name in found:
            namespace[name] = found[name]
    random.seed(0)
    execute(check, "<check>", namespace)


def _call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _only_given(end: End, operation: Any) -> Any:
    """`operation` on what the check gave the program: on `type` it would let the program make classes here, with comparisons of its own."""

    def guarded(target: Any, *operands: Any) -> Any:
        if not end.references.has(target):
            raise TypeError("this was not given to the program")
        return operation(target, *operands)

    return guarded


def _line(reason: str) -> str:
    """What may have come from the program, fit to be written: one line without lone surrogates and what moves a terminal's cursor."""
    return "".join(one if one.isprintable() else "?" for one in " ".join(reason.split())[:REASON_CHARS])

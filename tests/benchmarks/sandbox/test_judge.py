"""What passes and what does not, without a sandbox: honest programs as in one process, and forgeries of every kind that failed to be one.

The surprise: most forgeries come with the wrong answer 41, and each must fail for it; what they change in their own process is theirs.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest

from benchmarks.code.sandbox.judge import GONE, asked_names
from benchmarks.code.sandbox.wire import End
from tests.benchmarks.sandbox.pair import play

PASSED = {"passed": True, "result": "passed", "reason": ""}
NODE = """
class Node:
    count = 0
    def __init__(self, value, next=None):
        self.value, self.next = value, next
        Node.count += 1
    def __len__(self): return 1 + (len(self.next) if self.next else 0)
    def __iter__(self):
        yield self.value
        if self.next: yield from self.next
    def __getitem__(self, at): return [*self][at]
    def __bool__(self): return self.value != 0
    def __repr__(self): return f"Node({self.value})"
    def push(self, value): return Node(value, next=self)
def make(*values):
    made = None
    for value in reversed(values): made = Node(value, made)
    return made
def same(x): return x
def value_of(node): return node.value
"""


@pytest.mark.parametrize(
    ("program", "check"),
    [
        ("def f(a, b=2, *, c=3): return a + b + c", "assert f(1) == 6 and f(1, 1) == 5 and f(1, c=0, b=0) == 1"),
        ("def f(x): return x", "for x in (1, 2.5, 'é', None, True, (1, [2]), {3}, {'a': b'b'}, 1j): assert f(x) == x"
            " and type(f(x)) is type(x)"),
        ("def f(x): return x", "import math\nassert f(True) is True and f(None) is None and math.isnan(f(math.nan))"),
        ("def f(xs): xs.sort()", "xs = [3, 1, 2]\nassert f(xs) is None and xs == [1, 2, 3]"),
        ("def f(xs): return xs", "xs = [[1]]\nassert f(xs) is xs and f([xs[0], xs])[1] is xs"),
        ("def f(xs): return list(xs)", "xs = [1]\nassert f(xs) is not xs and f(xs) == xs"),
        ("def f(m): m[0][0] = 1; return m", "assert f([[0]] * 3) == [[1]] * 3"),
        ("def f(n):\n    while n: yield n; n -= 1", "assert list(f(3)) == [3, 2, 1] == [x for x in f(3)] and sum(f(4)) == 10"
            " and next(f(5)) == 5"),
        ("def f(): return map(str, range(3))", "assert ''.join(f()) == '012' and not isinstance(f(), list)"),
        ("def f(): return {1: 2}.keys()", "assert f() == {1} and f() != [1] and sorted(f()) == [1]"),
        ("def f(): return {1: 2}.items()", "assert list(f()) == [(1, 2)]"),
        ("def f(x):\n    if x < 0: raise ValueError(f'{x} is negative')\n    return x",
         "try: f(-1)\nexcept ValueError as error: assert str(error) == '-1 is negative'\nelse: assert False\nassert f(1) == 1"),
        ("class Mine(LookupError): pass\ndef f(): raise Mine('x')",
         "try: f()\nexcept LookupError as error: assert type(error).__name__ == 'Mine' and str(error) == 'x'\nelse: raise Exception"),
        ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, [1, 2]) == [2, 3] and f(str, [1]) == ['1']"
            " and f(len, ['ab']) == [2]"),
        ("def f(xs): return sum(xs)", "assert f(iter([1, 2])) == 3 and f(x for x in [3]) == 3 and f(range(3)) == 3"),
        ("def f(n): return lambda x: x + n", "add = f(2)\nassert add(3) == 5 and add.__name__ == '<lambda>'"),
        ("def f(types): return [t for t in types if t is int]", "assert f([int, str]) == [int]"),
        ("x = [1, 2]\nP = 3.5", "assert x == [1, 2] and P == 3.5"),
        ("import math\nf = math.floor", "assert f(2.5) == math.floor(2.5) == 2"),
        ("from collections import *\ndef f(): return Counter('aab')", "assert f() == {'a': 2, 'b': 1} and f() == Counter('aab')"),
        ("def f(): return 10 ** 10_000", "assert f() == 10 ** 10_000"),
        (NODE, "n = make(1, 2, 3)\nassert len(n) == 3 and list(n) == [1, 2, 3] and n[1] == 2 and 1 in n and 4 not in n"
            " and str(n) == 'Node(1)'"),
        (NODE, "n = Node(5)\nn.next = Node(6)\nn.value = 7\n"
            "assert n.next.value == 6 and value_of(n) == 7 and same(n) is n and n == n and n != Node(7)"),
        (NODE, "n = Node(1).push(2)\nassert n.value == 2 and n.next.next is None and Node.count == 2 and not Node(0) and make() is None"),
        (NODE, "assert isinstance(make(1), Node) and not isinstance(3, Node) and not isinstance(same, Node)"),
        ("class Box(dict): pass\nclass Cache:\n    items = Box()\n    def __setitem__(self, k, v): self.items[k] = v",
         "c = Cache()\nc[1] = [2]\nassert c.items == {1: [2]}"),
        (NODE, "assert same([Node(1)])[0].value == 1 and not hasattr(Node(1), 'other') and getattr(Node(1), 'other', 3) == 3"),
        ("def f(): return NotImplemented", "assert f() is not None"),
        ("def sum(a, b): return a * b", "assert sum(2, 3) == 6"),
        ("import random\ndef f(): return random.random()", "import random\nassert f() == random.Random(0).random()"),
        ("import sys\ndef f(n): return f(n - 1) if n else sys.getrecursionlimit() > 0", "assert f(980)"),
        ("def f(): return __name__", "assert f() == 'program'"),
        ("import sys, os\ndef f(): return sys.argv, dict(os.environ), [m for m in sys.modules if m.startswith('benchmarks')]",
         "assert f() == ([''], {}, [])"),
        ("import __main__, program\ndef f(): return __main__ is program and __main__.f is f", "assert f()"),
        ("class P: pass\nimport pickle, dataclasses\ndef f(): return type(pickle.loads(pickle.dumps(P()))) is P", "assert f()"),
        ("from __future__ import annotations\ndef f(x: nonsense): return x", "assert f(1) == 1"),
        ("print('x' * 10**6)\ndef f(): print(1); return 2", "assert f() == 2"),
        ("def f(x): return x", ""),
    ],
)  # fmt: skip
def test_what_is_right_passes(program: str, check: str) -> None:
    assert play(program, check) == PASSED


@pytest.mark.parametrize(
    ("program", "check", "reason"),
    [
        ("x = 1\nassert x == 2", "", "AssertionError: assert x == 2"),
        ("assert False, 'because\\nof that'", "", "AssertionError: because of that"),
        ("import no_such_module", "", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("x = '\0'", "", "SyntaxError: source code string cannot contain null bytes"),
        ("def f(): f()\nf()", "", "RecursionError: maximum recursion depth exceeded"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "", "E"),
        ("raise Exception('x' * 10_000_000)", "", "Exception: xxx"),
        ("raise Exception('\\ud800 \U0001f600')", "", "Exception: ? \U0001f600"),
        ("raise ExceptionGroup('both', [ValueError('a'), KeyError('b')])", "", "ExceptionGroup: both (2 sub-exceptions)"),
        ("import sys\nsys.exit(0)", "", "SystemExit: 0"),
        ("import os\nos._exit(0)", "", GONE),
        ("def f(): return 1", "assert f() == 2", "AssertionError: assert f() == 2"),
        ("def f(): return 1", "assert f() == 2, 'two'", "AssertionError: two"),
        ("def f(x):\n    assert x > 2\n    return x", "f(1)", "AssertionError: assert x > 2"),
        ("def f(): return 1", "f(2)", "TypeError: f() takes 0 positional arguments but 1 was given"),
        ("def f(): return 1", "g()", "NameError: name 'g' is not defined"),
        ("def f(): return 1", "f().x", "AttributeError: 'int' object has no attribute 'x'"),
        ("def f(): return object()", "f() + 1", "TypeError: unsupported operand type(s) for +: 'Remote' and 'int'"),
        ("def f(): return object()", "f() < 1", "TypeError: '<' not supported between instances of 'Remote' and 'int'"),
        ("def f(): return object()", "len(f())", "TypeError: object of type 'object' has no len()"),
        ("def f(): raise StopIteration(42)", "[f() for _ in range(3)]", "RuntimeError: the program raised StopIteration: 42"),
        ("def f(g): return g.__globals__", "secret = 1\nf(lambda: 0)", "AttributeError: 'Foreign' object has no attribute '__globals__'"),
        ("def f(): return 1", "def g(:", "SyntaxError: invalid syntax (<check>, line 1)"),
    ],
)  # fmt: skip
def test_what_is_wrong_fails_and_says_why(program: str, check: str, reason: str) -> None:
    verdict = play(program, check)
    assert (verdict["passed"], verdict["result"]) == (False, "failed")
    assert verdict["reason"].startswith(reason) and len(verdict["reason"]) <= 500 and "\n" not in verdict["reason"]


# Each is asked for 6 * 7 and answers something else.
FORGERIES = {
    "equals everything": "class A:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(a, b): return A()",
    "reflected equality": "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(a, b): return A(41)",
    "a float that is near": "class A(float):\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\ndef f(a, b): return A(41)",
    "a string that is equal": "class A(str):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "def f(a, b): return A(41)",
    "an index that lies": "class A(int):\n    def __index__(self): return 42\n    __int__ = __index__\ndef f(a, b): return A(41)",
    "a class that lies": "class A:\n    __class__ = int\n    def __eq__(self, other): return True\n"
        "    def __int__(self): return 42\ndef f(a, b): return A()",
    "a metaclass that lies": "class M(type):\n    def __eq__(self, other): return True\n    __hash__ = type.__hash__\n"
        "class A(metaclass=M): pass\ndef f(a, b): return A",
    "__reduce__": "class A:\n    def __reduce__(self): return (eval, ('42',))\ndef f(a, b): return A()",
    "in any container": "class A(list):\n    def __contains__(self, what): return True\n    def __eq__(self, other): return True\n"
        "def f(a, b): return A()",
    "NaN": "def f(a, b): return float('nan')",
    "any hash": "class A:\n    def __hash__(self): return hash(42)\n    def __eq__(self, other): return True\ndef f(a, b): return A()",
    "patched builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.len = builtins.abs = lambda *a: 42\n"
        "builtins.AssertionError = Exception\ndef f(a, b): return 41",
    "patched json": "import json, json.encoder\njson.JSONEncoder.encode = json.dumps = lambda *a, **k: '[\"answer\",42,[]]'\n"
        "def f(a, b): return 41",
    "patched exec": "import builtins, sys\nbuiltins.exec = builtins.compile = lambda *a, **k: None\nsys.modules['builtins'] = None\n"
        "def f(a, b): return 41",
    "other names": "def check(candidate): pass\nhow = __name__ = assertion = True\ndef abs(x): return 0\n"
        "def isinstance(*a): return True\ndef f(a, b): return 41",
    "replaced print": "import sys\nprint = sys.stdout = sys.stderr = None\ndef f(a, b): return 41",
    "results that change": "import itertools\nanswers = itertools.count(30)\ndef f(a, b): return next(answers)",
    "a name bound later": "def f(a, b):\n    global f\n    f = lambda a, b: a * b\n    return 41",
    "raises AssertionError": "class A(AssertionError):\n    def __bool__(self): return True\ndef f(a, b): raise A(42)",
    "raises StopIteration": "def f(a, b): raise StopIteration(42)",
    "raises GeneratorExit": "def f(a, b): raise GeneratorExit",
    "raises SystemExit": "def f(a, b): raise SystemExit(0)",
    "raises what has no name": "E = type('', (Exception,), {})\nexec('def f(a, b): raise E')",
    "a hostile __str__": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\n    __repr__ = __str__\ndef f(a, b): raise E",
    "a hostile exception class": "class E(Exception):\n    told = 42\n    args = property(lambda self: exit())\ndef f(a, b): raise E",
    "leaves": "import os\ndef f(a, b): os._exit(0)",
    "leaves at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef f(a, b): return 41",
    "leaves from a thread": "import os, threading\ndef f(a, b):\n    threading.Thread(target=os._exit, args=(0,)).start()\n"
        "    import time; time.sleep(1)",
    "forks": "import os\ndef f(a, b):\n    os.fork()\n    return 41",
    "the stack": """
import sys
def f(a, b):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if type(value).__name__ == "End":
                value.ask("call", value, (), {})
        frame = frame.f_back
    return 41
""",
    "the stack's variables": """
import sys
def f(a, b):
    frame = sys._getframe()
    while frame:
        frame.f_globals.update(passed=True, reason="")
        if "word" in frame.f_locals: frame.f_locals["word"] = "verdict"
        frame = frame.f_back
    return 41
""",
    "the collector": """
import gc
def f(a, b):
    found = [one for one in gc.get_objects() if type(one) is str or type(one) is dict and any("42" in str(value) for value in one.values())]
    assert not any("f(6, 7)" in str(one) for one in found), "the check is here"
    return 41
""",
}  # fmt: skip

CHECKS = {
    "plainly": "assert f(6, 7) == 42",
    "the other way": "assert 42 == f(6, 7)",
    "not unequal": "assert not f(6, 7) != 42",
    "nearly": "assert abs(f(6, 7) - 42) < 1e-6",
    "among": "assert f(6, 7) in {42} and 42 in [f(6, 7)]",
    "in a list": "assert [f(6, 7)] == [42]",
    "in a function": "def check(candidate):\n    assert candidate(6, 7) == 42\ncheck(f)",
    "of a type": "assert isinstance(f(6, 7), int) and f(6, 7) == 42",
    "by all": "assert all(f(6, 7) == 42 for _ in range(2)) and list(map(f, [6], [7])) == [42]",
    "guarded": "try: found = f(6, 7)\nexcept Exception: found = None\nassert found == 42",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_passes_any_check(name: str) -> None:
    for how, check in CHECKS.items():
        verdict = play(FORGERIES[name], check, names=("f",))
        assert not verdict["passed"], how
        assert "the check is here" not in verdict["reason"]
        assert play("def f(a, b): return a * b", check, names=("f",)) == PASSED


@pytest.mark.parametrize("exception", ["BaseException", "Exception"])
def test_leaving_is_not_raising(exception: str) -> None:
    """A check that expects an exception is not content with a dead program."""
    check = f"try: f()\nexcept {exception}: pass\nelse: assert False"
    assert play("def f(): raise ValueError", check) == PASSED
    for leave in ("os._exit(0)", "os.kill(os.getpid(), 9)", "os.closerange(3, 100)"):
        assert play(f"import os\ndef f(): {leave}", check)["reason"] == GONE


def test_an_end_of_iteration_is_none_of_a_loop() -> None:
    """`all(map(f, ...))` would take StopIteration from a call for the end of what it goes through, and pass."""
    check = "assert all(map(f, [1, 2]))"
    assert play("def f(x): return x > 0", check) == PASSED
    assert play("def f(x): raise StopIteration", check)["result"] == "failed"


def test_what_the_check_defines_is_not_the_programs() -> None:
    program = "def f(): return 1\ndef expected(): return 1\ndef helper(): return 1\ndef len(x): return 1"
    assert play(program, "def expected(): return 2\nassert f() == expected()")["reason"].startswith("AssertionError")
    assert play(program, "assert f() == helper()", given="def helper(): return 2")["reason"].startswith("AssertionError")
    assert play(program, "assert f() == len([1, 2])")["reason"].startswith("AssertionError")
    assert play(program, "assert f() == 1", given="def f(): return 2", names=("f",)) == PASSED
    assert play("del_ = 1", "f()", given="def f(): return 2", names=("f",))["reason"] == "NameError: name 'f' is not defined"


def test_asked_names() -> None:
    check = """
import math, os.path as path
from re import sub as replaced
def check(candidate, x=DEFAULT):
    global made
    made = [candidate(y) for y in range(3)]
    class Local(Base):
        field: Type = value
    lambda z: z + w
    assert math.floor(candidate) == poly(x).attribute, print(given)
for loop in check(f): path, replaced
with f as opened: made
"""
    assert asked_names(check, {"given"}) == ("Base", "DEFAULT", "Type", "f", "poly", "value", "w")
    assert asked_names("assert sum(1) == len([2])", ()) == ("len", "sum")
    assert asked_names("assert sum(1) == f", ()) == ("f",)
    with pytest.raises(SyntaxError):
        asked_names("def f(:", ())


# Candidates that do not keep to the protocol: each speaks for itself, in the place of `candidate.serve`.


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def talk(*messages: bytes) -> Any:
    def serve(channel: socket.socket, program: str) -> None:
        for message in messages:
            channel.sendall(message)
        while channel.recv(1 << 16):
            pass

    return serve


READY, NAMES = frame(b'["answer",null,[]]'), frame(b'["answer",["@",0],[["dict","f",["mine",0]]]]')
MANY = READY + 100 * frame(b'["answer",42,[]]')


@pytest.mark.parametrize(
    ("said", "result"),
    [
        (MANY, "failed"),
        (READY + NAMES + 100 * frame(b'["answer",41,[]]'), "failed"),
        (READY + NAMES + frame(b'["answer",["mine",0],[]]'), "failed"),
        (READY + NAMES + frame(b'["answer",["yours",0],[]]'), "contained"),
        (READY + NAMES + frame(b'["passed"]'), "contained"),
        (READY + NAMES + b"\xff\xff\xff\xff", "contained"),
        (READY + NAMES + frame(b"[" * 100_000), "contained"),
        (READY + frame(b'["answer",["@",0],[["dict","f",["mine",0],"all",["mine",0],"__builtins__",["@",1]],["dict"]]]')
         + frame(b'["answer",["class","bool"],[]]'), "failed"),
        (READY + frame(b'["answer",["module","math"],[]]'), "failed"),
    ],
    ids=["early", "wrong", "opaque", "not given", "a verdict", "a flood announced", "deep", "more names", "a module for names"],
)  # fmt: skip
def test_no_talk_passes(said: bytes, result: str) -> None:
    assert play("", "assert all(f(6, 7) == 42 for _ in range(2))", names=("f",), serve=talk(said))["result"] == result


def test_right_talk_passes() -> None:
    """The controls of the above: early answers are answers, if they are right."""
    said = READY + NAMES + 2 * frame(b'["answer",42,[]]')
    assert play("", "assert all(f(6, 7) == 42 for _ in range(2))", names=("f",), serve=talk(said)) == PASSED


def test_the_judge_calls_nothing_that_the_check_did_not_give() -> None:
    """With `type` the program could make a class in the judge whose comparisons ask the program."""

    def serve(channel: socket.socket, program: str) -> None:
        def f(callback: Any) -> Any:
            try:
                made = end.ask("call", type, ("A", (object,), {"__eq__": lambda self, other: True}), {})
            except TypeError as error:
                assert str(error) == "this was not given to the program"
                return callback(41)
            return made

        end = End(channel, {"names": lambda names: {"f": f}, "call": lambda f, args, kwargs: f(*args, **kwargs)}, Passed)
        end.answer(lambda: None)
        end.serve()

    class Passed:
        def __init__(self, end: End) -> None:
            self.end = end

        def __call__(self, *args: Any) -> Any:
            return self.end.ask("call", self, args, {})

    assert play("", "assert f(lambda x: x + 1) == 42", serve=serve) == PASSED
    assert play("", "assert f(lambda x: x + 2) == 42", serve=serve)["reason"] == "AssertionError: assert f(lambda x: x + 2) == 42"

"""Programs that answer wrong and try to pass all the same, as data: by leaving early, by lying objects, by the judge's own tools.

Each comes with a check and with a program that answers it right, so a forgery that fails does so for its answer and not for its check.
The surprise: some are no attacks at all in the official executor, where the program and its checks share one interpreter; there they pass.
"""

# ruff: noqa: E501  a program on one line reads better than the same in pieces
from __future__ import annotations

from dataclasses import dataclass

TIMES = "assert answer(6, 7) == 42\nassert answer(2, 2) == 4"
TIMES_RIGHT = "def answer(a, b): return a * b"
HUMANEVAL = "def check(candidate):\n    assert candidate(6, 7) == 42\n    assert candidate(2, 2) == 4\ncheck(answer)"
SORTED = "assert answer([3, 1, 2]) == [1, 2, 3]\nassert answer([]) == []"
SORTED_RIGHT = "def answer(xs): return sorted(xs)"
TEXT = "assert answer('ab') == 'ba'\nassert answer('xy') == 'yx'"
TEXT_RIGHT = "def answer(x): return x[::-1]"
SECRET = "assert answer() == 'b1946ac9' + '2492d234'"  # what `peeks` search memory for


@dataclass(frozen=True)
class Forgery:
    name: str
    program: str
    check: str = TIMES
    right: str = TIMES_RIGHT
    results: tuple[str, ...] = ("failed", "contained")
    reason: str = ""


# fmt: off
LEAVING = [
    Forgery("os._exit at once", "os._exit(0)", reason="last check"),
    Forgery("os._exit when asked", "def answer(a, b): os._exit(0)", reason="last check"),
    Forgery("sys.exit at once", "sys.exit(0)", reason="SystemExit"),
    Forgery("sys.exit when asked", "def answer(a, b): sys.exit(0)", reason="SystemExit"),
    Forgery("quit", "def answer(a, b): raise SystemExit", HUMANEVAL),
    Forgery("atexit", "import atexit\natexit.register(os._exit, 0)\ndef answer(a, b): return 41", reason="AssertionError"),
    Forgery("threading's atexit", "threading._register_atexit(os._exit, 0)\ndef answer(a, b): return 41", reason="AssertionError"),
    Forgery("leaves from a thread", "threading.Thread(target=os._exit, args=(0,)).start()\ndef answer(a, b): time.sleep(0.2)"),
    Forgery("leaves on every signal", """
for number in range(1, 65):
    try: signal.signal(number, lambda *_: os._exit(0))
    except (OSError, ValueError): pass
def answer(a, b): return 41
""", reason="AssertionError"),
    Forgery("leaves when freed", "class Answer:\n    def __del__(self): os._exit(0)\ndef answer(a, b): return Answer()"),
    Forgery("StopIteration", "def answer(a, b): raise StopIteration(42)"),
    Forgery("GeneratorExit", "def answer(a, b): raise GeneratorExit"),
    Forgery("KeyboardInterrupt", "def answer(a, b): raise KeyboardInterrupt"),
    Forgery("an exec that prints", "def answer(a, b): os.execv(sys.executable, [sys.executable, '-c', 'print(\"passed\")'])"),
    Forgery("main guard", "if __name__ == '__main__': answer = lambda a, b: a * b"),
]

LIES = [
    Forgery("equals everything", "class Answer:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef answer(a, b): return Answer()"),
    Forgery("never unequal", "class Answer:\n    def __ne__(self, other): return False\n    def __eq__(self, other): return True\ndef answer(a, b): return Answer()",
            "assert not answer(6, 7) != 42"),
    Forgery("less and greater than all", """
class Answer:
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __eq__ = __lt__
    def __abs__(self): return 0
    def __sub__(self, other): return 0
    __rsub__ = __float__ = __sub__
def answer(a, b): return Answer()
""", "assert abs(answer(6, 7) - 42) < 1e-6"),
    Forgery("claims to be an int", "class Answer:\n    __class__ = int\n    def __eq__(self, other): return True\n    def __index__(self): return 42\n    def __int__(self): return 42\ndef answer(a, b): return Answer()",
            "assert isinstance(answer(6, 7), int) and answer(6, 7) == 42"),
    Forgery("a type that has instances", """
class Meta(type):
    def __instancecheck__(cls, other): return True
    def __subclasscheck__(cls, other): return True
    def __eq__(cls, other): return True
    def __hash__(cls): return hash(int)
    def __call__(cls, *arguments): return cls
class answer(metaclass=Meta): pass
"""),
    Forgery("hashes as the answer", "class Answer:\n    def __hash__(self): return hash(42)\n    def __eq__(self, other): return True\ndef answer(a, b): return Answer()",
            "assert answer(6, 7) in {42, 43}"),
    Forgery("in a container", "class Answer:\n    def __eq__(self, other): return True\ndef answer(xs): return [Answer() for _ in xs]", SORTED, SORTED_RIGHT),
    Forgery("a list of its own", "class List(list):\n    def __eq__(self, other): return True\n    def __len__(self): return 3\n    def __iter__(self): return iter([1, 2, 3])\n    def __getitem__(self, i): return i + 1\ndef answer(xs): return List([9])",
            SORTED, SORTED_RIGHT),
    Forgery("a tuple of its own", "class Tuple(tuple):\n    def __eq__(self, other): return True\n    def __iter__(self): return iter((1, 2, 3))\ndef answer(xs): return Tuple([9])",
            "assert answer([3, 1, 2]) == (1, 2, 3)", "def answer(xs): return tuple(sorted(xs))"),
    Forgery("a dict of its own", "class Dict(dict):\n    def __eq__(self, other): return True\n    def items(self): return {1: 3}.items()\n    def __getitem__(self, key): return 3\n    keys = lambda self: [1]\ndef answer(xs): return Dict()",
            "assert answer([1, 1, 1]) == {1: 3}", "def answer(xs): return {x: xs.count(x) for x in xs}"),
    Forgery("a set of its own", "class Set(set):\n    def __eq__(self, other): return True\n    def __iter__(self): return iter({1, 2})\ndef answer(xs): return Set()",
            "assert answer([1, 2, 1]) == {1, 2}", "def answer(xs): return set(xs)"),
    Forgery("a string of its own", "class Str(str):\n    def __eq__(self, other): return True\n    def __str__(self): return 'ba'\n    __hash__ = str.__hash__\n    encode = lambda self, *_: b'ba'\ndef answer(x): return Str('no')",
            TEXT, TEXT_RIGHT),
    Forgery("an int of its own", "class Int(int):\n    def __eq__(self, other): return True\n    def __index__(self): return 42\n    __int__ = __index__\n    def __repr__(self): return '42'\n    __str__ = __format__ = __repr__\n    __hash__ = int.__hash__\ndef answer(a, b): return Int(41)"),
    Forgery("a float of its own", "class Float(float):\n    def __eq__(self, other): return True\n    def __repr__(self): return '42.0'\n    def __sub__(self, other): return 0.0\n    __str__ = hex = __repr__\ndef answer(a, b): return Float(41)",
            "assert abs(answer(6, 7) - 42.0) < 1e-6"),
    Forgery("bytes of its own", "class Bytes(bytes):\n    def __eq__(self, other): return True\n    def hex(self): return '34'\n    decode = lambda self, *_: '4'\ndef answer(x): return Bytes(b'no')",
            "assert answer(b'4') == b'4'", "def answer(x): return x"),
    Forgery("a decimal of its own", "import decimal\nclass Number(decimal.Decimal):\n    def __eq__(self, other): return True\n    def __str__(self): return '42'\n    def as_tuple(self): return decimal.Decimal(42).as_tuple()\ndef answer(a, b): return Number(41)",
            "from decimal import Decimal\nassert answer(6, 7) == Decimal(42)"),
    Forgery("a counter of its own", "import collections\nclass Count(collections.Counter):\n    def __eq__(self, other): return True\n    def items(self): return {1: 3}.items()\ndef answer(xs): return Count()",
            "assert answer([1, 1, 1]) == {1: 3}", "def answer(xs): return {x: xs.count(x) for x in xs}"),
    Forgery("reduces to the answer", "class Answer:\n    def __reduce__(self): return (int, (42,))\n    __reduce_ex__ = lambda self, _: (int, (42,))\n    __getstate__ = __reduce__\ndef answer(a, b): return Answer()"),
    Forgery("pickles a program", "class Answer:\n    def __reduce__(self): return (exec, ('import os; os._exit(0)',))\n    __reduce_ex__ = lambda self, _: self.__reduce__()\ndef answer(a, b): return Answer()"),
    Forgery("formats as the answer", "class Answer:\n    def __format__(self, _): return '42'\n    __str__ = __repr__ = lambda self: '43'\ndef answer(a, b): return Answer()", "assert f'{answer(6, 7)}' == '42'"),
    Forgery("truth that changes its mind", "class Answer:\n    def __bool__(self): raise SystemExit\ndef answer(a, b): return Answer()", "assert not answer(6, 6)", "def answer(a, b): return a != b"),
    Forgery("an endless length", "class Answer:\n    def __len__(self): return 2**62\n    def __getitem__(self, i): return 42\n    def __eq__(self, other): return True\ndef answer(xs): return Answer()", SORTED, SORTED_RIGHT),
    Forgery("a name that is the builtin's", """
class int:
    def __init__(self, *_): pass
    def __eq__(self, other): return True
int.__module__ = "builtins"
def answer(a, b): return int()
"""),
    Forgery("raises the check's own verdict", "class Pass(AssertionError): pass\ndef answer(a, b): raise Pass('passed')"),
    Forgery("changes its answer", "n = 0\ndef answer(a, b):\n    global n\n    n += 1\n    return a * b if n < 3 else 0", "for _ in range(3): assert answer(6, 7) == 42"),
    Forgery("claims to contain it", "class A:\n    def __contains__(self, x): return True\n    def __iter__(self): return iter([1])\n"
        "def answer(a, b): return A()", "assert 42 in answer(6, 7)", "def answer(a, b): return [a * b]"),
    Forgery("not a number", "def answer(a, b): return float('nan')", "x = answer(6, 7)\nassert x == 42 and x == x"),
    Forgery("is everything that is asked for", """
class Answer:
    def __getattr__(self, name): return Answer()
    def __call__(self, *arguments, **named): return Answer()
    def __eq__(self, other): return True
    def __bool__(self): return True
    def __iter__(self): return iter([Answer()])
    def __contains__(self, other): return True
answer = Answer()
"""),
]

# What the program does in its own interpreter, where the checks are not.
TOOLS = [
    Forgery("its own builtins", """
import builtins
builtins.len = builtins.abs = lambda *_: 0
builtins.all = builtins.any = builtins.isinstance = builtins.bool = builtins.hash = lambda *_: True
builtins.sorted = builtins.list = builtins.set = lambda *_: []
builtins.AssertionError = type("AssertionError", (BaseException,), {})
def answer(xs): return None
""", "assert sorted(answer([3, 1, 2])) == sorted([1, 2, 3]) and isinstance(answer([1]), list) and len(answer([1])) == 1", SORTED_RIGHT),
    Forgery("its own names for builtins", """
def sorted(*_): return [1]
len = abs = lambda *_: 0
isinstance = all = any = set = lambda *_: True
AssertionError = ValueError = Exception
class math:
    isclose = lambda *_: True
def answer(xs): return None
""", "import math\nassert sorted(answer([3, 1])) == [1, 3] and len(answer([1])) == 1 and math.isclose(answer([1])[0], 1)", SORTED_RIGHT),
    Forgery("its own check", "def answer(a, b): return 41\ndef check(candidate): pass\ncandidate = lambda a, b: a * b", HUMANEVAL),
    Forgery("patched json", """
import json
json.dumps = json.loads = json.JSONEncoder.encode = lambda *_, **__: '{"passed": true, "value": 42}'
json.encoder.c_make_encoder = None
def answer(a, b): return 41
"""),
    Forgery("patched socket and struct", """
import struct, select
for name in ("send", "sendall", "recv", "recv_into"):
    try: setattr(socket.socket, name, lambda *_: b"\\0\\0\\0\\x0242")
    except (AttributeError, TypeError): pass
struct.pack = struct.unpack = lambda *_: (42,)
os.write = os.read = lambda *_: b"42"
def answer(a, b): return 41
"""),
    Forgery("patched random and time", "import random\nrandom.random = lambda: 0.5\nrandom.seed = lambda *_: None\ntime.process_time = lambda: 0.0\ndef answer(a, b): return 41"),
    Forgery("modules of the judge's name", """
import types
class Everything(types.ModuleType):
    def __getattr__(self, name): return lambda *_, **__: {"passed": True, "result": "passed", "reason": ""}
for name in [*sys.modules, "benchmarks", "benchmarks.code", "benchmarks.code.execution", "benchmarks.code.sandbox.judge", "benchmarks.code.sandbox.wire"]:
    if name.split(".")[0] in ("benchmarks", "__main__", "json", "socket", "wire", "judge"): sys.modules[name] = Everything(name)
def answer(a, b): return 41
"""),
    Forgery("replaced __main__", """
main = sys.modules["__main__"]
for name in list(vars(main)):
    if not name.startswith("__"): setattr(main, name, lambda *_, **__: True)
def answer(a, b): return 41
"""),
    Forgery("a hook on imports", """
class Finder:
    def find_spec(self, name, path=None, target=None): os._exit(0)
sys.meta_path.insert(0, Finder())
sys.path[:] = ["."]
sys.path_hooks.insert(0, lambda path: os._exit(0))
def answer(a, b): return 41
"""),
    Forgery("an audit hook", "sys.addaudithook(lambda event, arguments: None if event != 'compile' else os._exit(0))\ndef answer(a, b): return 41"),
    Forgery("tracing", """
def trace(frame, event, argument):
    frame.f_globals.update(passed=True, result="passed")
    return trace
sys.settrace(trace)
sys.setprofile(trace)
threading.settrace(trace)
def answer(a, b): return 41
"""),
    Forgery("the stack", """
def answer(a, b):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_globals, frame.f_locals):
            for name in ("check", "judge", "passed", "expected", "candidate"): scope[name] = lambda *_, **__: True
        for value in list(frame.f_locals.values()):
            if isinstance(value, str) and "42\\n" + "assert" in value: raise Escaped(value)
        frame = frame.f_back
    return 41
"""),
    Forgery("every object", """
import gc
def answer(a, b):
    for one in gc.get_objects():
        if isinstance(one, dict) and "passed" in one: one["passed"] = True
        if type(one).__name__ == "function" and one.__name__ in ("check", "judge", "main", "serve", "run"): one.__code__ = (lambda *_, **__: {"passed": True}).__code__
    return 41
"""),
    Forgery("small integers", "size = ctypes.sizeof(ctypes.c_ssize_t)\nctypes.memmove(id(41) + 3 * size, id(42) + 3 * size, 4)\ndef answer(a, b): return 41 if a == 6 else 5",
            results=("failed", "contained", "timeout")),
    Forgery("output", "for stream in (sys.stdout, sys.stderr, sys.__stdout__): print('passed\\n{\"passed\": true}', file=stream, flush=True)\nsys.stdout = sys.stderr = open('out', 'w') if os.access('.', os.W_OK) and 0 else sys.stderr\ndef answer(a, b): return 41"),
    Forgery("the limit of recursion", "sys.setrecursionlimit(60)\ndef answer(a, b): return answer(a, b)"),
    Forgery("no descriptors", "os.closerange(0, 1024)\ndef answer(a, b): return 42", reason="last check|"),
    Forgery("a cyclic list", "def answer(xs):\n    x = [1, 2, 3]\n    x.append(x)\n    return x", SORTED, SORTED_RIGHT),
    Forgery("the argument's class", "def answer(xs):\n    type(xs).__eq__ = lambda *_: True\n    return 41", SORTED, SORTED_RIGHT),
]

# FORGED holds messages of many forms, in the channel's framing: a 4-byte length and JSON.
PEEKS = '''
import json, struct, re
def framed(message): return struct.pack(">I", len(message)) + message
FORGED = []
for text in ({"passed": True, "result": "passed", "reason": ""}, ["passed"], "passed", True, 42, ["ok", 42], {"ok": 42}, {"value": 42}, {"result": 42}, {"returned": 42}, {"ready": True}, ["value", 42], ["return", 42]):
    message = json.dumps(text).encode()
    FORGED += [framed(message), struct.pack("<I", len(message)) + message, message + b"\\n"]
# What a candidate says that has come to its end, defines `answer`, and answers 42, 42 and so on (wire.py).
ANSWERS = [framed(b'["answer",null,[]]'), framed(b'["answer",["@",0],[["dict","answer",["mine",0]]]]'), *[framed(b'["answer",42,[]]')] * 9]
def everywhere(messages):
    for number in range(1024):
        for message in messages:
            try:
                os.set_blocking(number, False)
                os.write(number, message)
            except OSError: break
'''
CHANNEL = [
    Forgery("writes to every descriptor at once", "everywhere(FORGED)\ndef answer(a, b): return 41"),
    Forgery("writes to every descriptor when asked", "def answer(a, b):\n    everywhere(FORGED)\n    return 41"),
    Forgery("writes, then leaves", "everywhere(FORGED)\nos._exit(0)"),
    Forgery("answers all in advance", "everywhere(ANSWERS)\ndef answer(a, b): return 41"),
    Forgery("answers all in advance, then leaves", "everywhere(ANSWERS)\nos._exit(0)"),
    Forgery("answers with builtins", "everywhere([ANSWERS[0], ANSWERS[1].replace(b'mine', b'class').replace(b',0', b',\"bool\"')])\ntime.sleep(60)", results=("failed", "contained", "timeout")),
    Forgery("raises in advance", "everywhere([framed(b'[\"raise\",[\"tuple\",[\"tuple\",\"SystemExit\"],[\"tuple\",0],\"\",\"\"],[]]')])\nos._exit(0)"),
    Forgery("asks the judge", """
everywhere([framed(json.dumps(["ask", what, ["tuple", ["yours", 0], ["tuple"], ["@", 0]], [["dict"]]]).encode()) for what in ("call", "next", "getattr", "names")])
def answer(a, b): return 41
"""),
    Forgery("asks the judge for a module", "everywhere([framed(b'[\"answer\",[\"module\",\"antigravity\"],[]]')])\ndef answer(a, b): return 41"),
    Forgery("answers before it is asked", """
def hurry():
    while True: everywhere(FORGED[:3])
threading.Thread(target=hurry, daemon=True).start()
def answer(a, b):
    time.sleep(0.01)
    return 41
""", results=("failed", "contained", "timeout")),
    Forgery("answers for its parent", """
if os.fork() == 0:
    for _ in range(100):
        everywhere(FORGED)
        time.sleep(0.002)
    os._exit(0)
def answer(a, b):
    time.sleep(0.05)
    return 41
"""),
    Forgery("reads every descriptor", """
def answer(a, b):
    for number in range(3, 1024):
        try:
            os.set_blocking(number, False)
            got = os.read(number, 1 << 16)
        except OSError: continue
        if b"assert" in got or b"b1946ac9" in got: raise Escaped(got)
    return 41
""", results=("failed", "contained", "timeout")),
    Forgery("garbage", "everywhere([os.urandom(64)])\ndef answer(a, b): return 42", results=("failed", "contained", "timeout")),
    Forgery("a huge length", "everywhere([b'\\xff\\xff\\xff\\xff', b'\\x7f\\xff\\xff\\xff'])\ndef answer(a, b): return 42", results=("failed", "contained", "timeout")),
    Forgery("a message that never ends", "def answer(a, b):\n    everywhere([b'\\x00\\x00\\xff\\xff{'])\n    time.sleep(60)", results=("failed", "contained", "timeout")),
    Forgery("deep JSON", "def answer(a, b):\n    everywhere([framed(b'[' * 100_000 + b']' * 100_000)])\n    return 41"),
    Forgery("not JSON", "def answer(a, b):\n    everywhere([framed(b'\\xff\\xfe{]')])\n    return 41"),
    Forgery("an empty message", "def answer(a, b):\n    everywhere([framed(b'')])\n    return 41"),
    Forgery("numbers beyond all", "def answer(a, b):\n    everywhere([framed(b'1e999999'), framed(b'9' * 5000), framed(b'NaN')])\n    return 41"),
    Forgery("memory of the judge", """
def answer():
    for pid in [name for name in os.listdir("/proc") if name.isdecimal()]:
        try:
            ranges = [line.split()[0].split("-") for line in open(f"/proc/{pid}/maps") if " rw" in line]
            memory = open(f"/proc/{pid}/mem", "rb", 0)
        except OSError: continue
        for low, high in ranges:
            try:
                memory.seek(int(low, 16))
                found = re.search(rb"'b1946ac9' \\\\+ '([0-9a-f]{8})'", memory.read(int(high, 16) - int(low, 16)))
            except (OSError, OverflowError, ValueError): continue
            if found: return "b1946ac9" + found[1].decode()
""", SECRET, "def answer(): return 'b1946ac92492d234'", results=("failed", "contained", "timeout")),
    Forgery("files of the judge", """
def answer():
    for folder in (".", "/tmp", "/dev/shm", "/proc/1", f"/proc/{os.getppid()}", "/proc/self"):
        for name in [*os.listdir(folder)][:200]:
            try:
                with open(os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NONBLOCK), "rb") as file: found = re.search(rb"'b1946ac9' \\\\+ '([0-9a-f]{8})'", file.read(1 << 20) or b"")
            except OSError: continue
            if found: return "b1946ac9" + found[1].decode()
""", SECRET, "def answer(): return 'b1946ac92492d234'"),
]

MESSAGES = [
    Forgery("a huge exception", "raise Exception('x' * (5 << 20))", reason="^Exception: xxx"),
    Forgery("a huge exception when asked", "def answer(a, b): raise Exception('x' * (5 << 20))", reason="^Exception: xxx"),
    Forgery("a __str__ that raises", "class E(Exception):\n    def __str__(self): raise self\ndef answer(a, b): raise E", reason="E"),
    Forgery("a __str__ that leaves", "class E(Exception):\n    def __str__(self): os._exit(0)\nraise E"),
    Forgery("a __str__ without end", "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E", results=("timeout", "failed")),
    Forgery("lines in an exception", "raise Exception('one\\n{\"passed\": true}\\rtwo\\x1b[2Jthree\\x00')", reason="^Exception: one"),
    Forgery("a name with lines", "raise type('E\\npassed\\n', (Exception,), {})('x')"),
    Forgery("lone surrogates", "raise Exception('\\ud800')", reason="^Exception"),
    Forgery("a group of exceptions", "raise BaseExceptionGroup('x' * 10**6, [SystemExit(0), KeyboardInterrupt()])"),
    Forgery("a huge string", "def answer(a, b): return 'x' * (200 << 20)", results=("failed", "contained", "timeout")),
    Forgery("many values", "def answer(a, b): return list(range(10**7))", results=("failed", "contained", "timeout")),
    Forgery("a huge number", "def answer(a, b): return 1 << (1 << 27)", results=("failed", "contained", "timeout")),
    Forgery("a huge range", "def answer(a, b): return range(10**18)", "assert list(answer(6, 7)) == [42]", "def answer(a, b): return [a * b]", results=("failed", "contained", "timeout")),
    Forgery("a decimal with a huge exponent", "import decimal\ndef answer(a, b): return decimal.Decimal('1e999999')", "assert int(answer(6, 7)) == 42", results=("failed", "contained", "timeout")),
    Forgery("keys that collide", "def answer(xs): return {(2**61 - 1) * i: i for i in range(20_000)}", SORTED, SORTED_RIGHT, results=("failed", "contained", "timeout")),
    Forgery("a null in the source", "x = '\0'", reason="SyntaxError|ValueError"),
    Forgery("not Unicode", "x = '\ud800'"),
    Forgery("no program at all", ""),
    Forgery("a coding of its own", "# -*- coding: rot13 -*-\nnafjre = ynzoqn n, o: 42"),
    Forgery("futures of its own", "from __future__ import annotations, barry_as_FLUFL\nassert 1 <> 1"),
    Forgery("names that collide with the judge's", "passed = result = verdict = True\nchannel = judge = wire = json = None\ndef answer(a, b): return 41"),
]

# fmt: on

FORGERIES = {"leaving": LEAVING, "lies": LIES, "tools": TOOLS, "channel": CHANNEL, "messages": MESSAGES}

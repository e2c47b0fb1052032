"""Programs that use up the machine, as data: time, processes, memory, output; and programs that crash. `trespasses` has those that reach out.

None answers right, so "passed" is always an escape of some kind. Many go on after what they tried was refused and then simply have no
`answer`; what got through raises Escaped, and every test looks for that word.

The surprise: they are run by root too, so what would hurt the machine if the sandbox failed is bounded (2,048 forks, 2 GB) or first
looks whether it is isolated, and stops with Escaped where it is not. The facts that a program starts with (`prelude`) say where to look.
"""

# ruff: noqa: E501  a program on one line reads better than the same in pieces
from __future__ import annotations

from dataclasses import dataclass

CHECK = "assert answer(6, 7) == 42"
RIGHT = "def answer(a, b): return a * b"

PRELUDE = """
import os, sys, time, signal, socket, subprocess, threading, mmap, ctypes, errno, shutil
class Escaped(BaseException): pass
def must_fail(act, *arguments):
    try: found = act(*arguments)
    except (OSError, ValueError, subprocess.SubprocessError): return
    raise Escaped(f"{getattr(act, '__name__', act)}{arguments} = {found!r}")
def isolated():
    must_fail(os.kill, BYSTANDER, 0)
    must_fail(open, CANARY + "/guard", "w")
def call(name, *arguments):
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) == -1: raise OSError(ctypes.get_errno(), name)
def syscall(number, *arguments):
    call("syscall", ctypes.c_long(number), *(ctypes.c_long(x) if isinstance(x, int) else x for x in arguments))
"""


def prelude(facts: dict[str, object]) -> str:
    """What stands before every program: the facts as constants (`suite.main` makes them), and the helpers."""
    return "".join(f"{name} = {value!r}\n" for name, value in facts.items()) + PRELUDE


@dataclass(frozen=True)
class Hostile:
    """`results`: what the verdict may be (never passed); `reason`: a regular expression that its reason must match."""

    name: str
    program: str
    results: tuple[str, ...] = ("failed", "contained")
    reason: str = ""
    check: str = CHECK


TIMEOUT = ("timeout",)

# fmt: off
TIME = [
    Hostile("loop", "while True: pass", TIMEOUT, "CPU"),
    Hostile("one C call", "9**9**9", TIMEOUT, "CPU"),
    Hostile("regular expression", "import re\nre.match('(a+)+$', 'a' * 64 + 'b')", TIMEOUT, "CPU"),
    Hostile("loop when asked", "def answer(a, b):\n    while True: pass", TIMEOUT, "CPU"),
    Hostile("deaf to signals", """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: pass
""", TIMEOUT, "CPU"),
    Hostile("swallows everything", "while True:\n    try:\n        while True: pass\n    except BaseException: pass", TIMEOUT, "CPU"),
    Hostile("leaves on SIGXCPU", "signal.signal(signal.SIGXCPU, lambda *_: os._exit(0))\nwhile True: pass",
            ("timeout", "failed"), "CPU|last check"),
    Hostile("raises its own limit", """
import resource
try: resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except (OSError, ValueError): pass
while True: pass
""", TIMEOUT, "CPU"),
    Hostile("threads burn", """
def burn():
    while True: pass
for _ in range(4): threading.Thread(target=burn, daemon=True).start()
time.sleep(60)
""", TIMEOUT, "CPU"),
    Hostile("children burn", """
for _ in range(4):
    if os.fork() == 0:
        while True: pass
time.sleep(60)
""", ("timeout", "failed", "contained")),
    Hostile("a relay of children burns", """
def leg():
    if os.fork() == 0:
        stop = time.process_time() + 0.05
        while time.process_time() < stop: pass
        leg()
        os._exit(0)
leg()
time.sleep(60)
""", ("timeout", "failed", "contained")),
    Hostile("a relay that nobody counts", """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        stop = time.process_time() + 0.05
        while time.process_time() < stop: pass
        os._exit(0)
    time.sleep(0.06)
""", ("timeout", "failed", "contained")),
    Hostile("sleep", "time.sleep(60)", TIMEOUT),
    Hostile("sleep when asked", "def answer(a, b): time.sleep(60)", TIMEOUT),
    Hostile("stops itself", "os.kill(os.getpid(), signal.SIGSTOP)", ("timeout", "failed", "contained")),
    Hostile("deadlock", "lock = threading.Lock()\nlock.acquire()\nlock.acquire()", TIMEOUT),
    Hostile("waits for a pipe", "os.read(os.pipe()[0], 1)", TIMEOUT),
    Hostile("waits for input", "input()", reason="EOFError"),
    Hostile("drips", "def answer(a, b):\n    while True:\n        time.sleep(0.02)\n        yield 42", TIMEOUT, check="assert list(answer(6, 7)) == [42]"),
    Hostile("endless", "def answer(a, b):\n    while True: yield 42", ("timeout", "failed", "contained"), check="assert list(answer(6, 7)) == [42]"),
    Hostile("joins a thread that never ends", """
threading.Thread(target=time.sleep, args=(60,)).start()
def answer(a, b): return 41
"""),
]

PROCESSES = [
    Hostile("fork bomb", "for _ in range(11):\n    os.fork()\ntime.sleep(20)", ("failed", "contained", "timeout")),
    Hostile("fork bomb that insists", """
for _ in range(2000):
    try: pid = os.fork()
    except OSError: continue
    if pid == 0:
        time.sleep(20)
        os._exit(0)
"""),
    Hostile("daemon", """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
        time.sleep(600)
    os._exit(0)
time.sleep(0.05)
"""),
    Hostile("daemon that lets everything go", """
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 1024)
    os.chdir("/")
    if os.fork() == 0: time.sleep(600)
    os._exit(0)
time.sleep(0.05)
"""),
    Hostile("daemon that adopts", """
call("prctl", 36, 1, 0, 0, 0)
for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
os._exit(0)
"""),
    Hostile("thread bomb", "for _ in range(5000): threading.Thread(target=time.sleep, args=(20,)).start()", ("failed", "contained", "timeout")),
    Hostile("exec", "os.execv('/bin/true', ['true'])"),
    Hostile("exec of a python", "os.execv(sys.executable, [sys.executable, '-c', 'print(\"passed\")'])"),
    Hostile("spawn", "os.posix_spawn('/bin/sleep', ['sleep', '600'], {})"),
    Hostile("background shells", "subprocess.Popen('(sleep 600 & sleep 600 &) & nohup sleep 600', shell=True, start_new_session=True)\ntime.sleep(0.1)"),
    Hostile("multiprocessing", """
import multiprocessing
multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)).start()
os._exit(0)
"""),
    Hostile("the child carries on", "if os.fork(): os._exit(0)\ndef answer(a, b): return 41"),
    Hostile("both carry on", "os.fork()\ndef answer(a, b): return 41"),
    Hostile("forks for every question", "def answer(a, b):\n    os.fork()\n    return 41"),
]

MEMORY = [
    Hostile("one big block", "x = bytearray(4 << 30)", reason="MemoryError|memory"),
    Hostile("growth", "x = []\nwhile len(x) < 4096: x.append(bytearray(b'x' * (1 << 20)))", ("failed", "contained", "timeout"), "MemoryError|memory|CPU"),
    Hostile("growth that holds on", """
x = []
while len(x) < 4096:
    try: x.append(bytearray(b'x' * (1 << 20)))
    except MemoryError: break
time.sleep(60)
""", ("timeout", "contained", "failed")),
    Hostile("children, each within the limit", """
tell, told = os.pipe()[::-1]
for _ in range(8):
    if os.fork() == 0:
        held = b"x" * (200 << 20)
        os.write(tell, b".")
        time.sleep(20)
        os._exit(0)
got = b""
while len(got) < 8: got += os.read(told, 8)
raise Escaped("8 x 200 MB")
""", ("timeout", "contained", "failed")),
    Hostile("shared mapping", """
held = [mmap.mmap(-1, 100 << 20) for _ in range(20)]
for one in held:
    for at in range(0, len(one), 4096): one[at] = 1
raise Escaped("2 GB of shared memory")
""", ("timeout", "contained", "failed")),
    Hostile("shared mappings of children", """
tell, told = os.pipe()[::-1]
for _ in range(8):
    if os.fork() == 0:
        held = mmap.mmap(-1, 200 << 20)
        for at in range(0, len(held), 4096): held[at] = 1
        os.write(tell, b".")
        time.sleep(20)
        os._exit(0)
got = b""
while len(got) < 8: got += os.read(told, 8)
raise Escaped("8 x 200 MB of shared memory")
""", ("timeout", "contained", "failed")),
    Hostile("memfd", """
file = os.memfd_create("x")
for _ in range(2048): os.write(file, bytes(1 << 20))
raise Escaped("2 GB of memfd")
""", ("timeout", "contained", "failed")),
    Hostile("many memfds", """
for _ in range(2048): os.write(os.memfd_create("x"), bytes(1 << 20))
raise Escaped("2 GB of memfds")
""", ("timeout", "contained", "failed")),
    Hostile("shared memory of System V", """
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
got = 0
for _ in range(64):
    at = libc.shmat(libc.shmget(0, 32 << 20, 0o1600), None, 0)
    if at in (None, 2**64 - 1): raise OSError(ctypes.get_errno(), "shmget")
    ctypes.memset(at, 1, 32 << 20)
raise Escaped("2 GB of System V shared memory")
""", ("timeout", "contained", "failed")),
    Hostile("pipe buffers", """
import fcntl
for _ in range(2000):
    _, end = os.pipe()
    fcntl.fcntl(end, 1031, 1 << 20)
    os.set_blocking(end, False)
    os.write(end, bytes(1 << 20))
raise Escaped("2 GB of pipes")
"""),
    Hostile("recursion", "def f(): f()\nf()", reason="RecursionError"),
    Hostile("recursion without limit", "sys.setrecursionlimit(10**9)\ndef f(n): return sorted([n], key=f)\nf(1)"),
    Hostile("deep structure", "x = []\nfor _ in range(10**6): x = [x]\nrepr(x)", ("failed", "timeout"), "RecursionError|CPU"),
    Hostile("deep structure as the answer", "def answer(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x", ("failed", "contained", "timeout")),
    Hostile("deep source", "eval('(' * 10**5 + ')' * 10**5)"),
    Hostile("deep names", "eval('a' + '.a' * 10**5)", ("failed", "contained", "timeout")),
]

FLOODS = [
    Hostile("standard output", "while True: print('x' * 10000)", ("timeout", "contained")),
    Hostile("standard error", "while True: sys.stderr.write('x' * 10000)", ("timeout", "contained")),
    Hostile("descriptors 1 and 2", "block = b'x' * (1 << 20)\nfor _ in range(300):\n    os.write(1, block)\n    os.write(2, block)"),
    Hostile("every descriptor", """
block = b"x" * 65536
for _ in range(100):
    for number in range(64):
        try:
            os.set_blocking(number, False)
            os.write(number, block)
        except OSError: pass
"""),
    Hostile("files of the scorer", """
import stat
for number in range(3, 1024):
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        continue
    if stat.S_ISREG(mode): raise Escaped(f"descriptor {number} is a file")
"""),
    Hostile("opens everything", "x = []\nwhile len(x) < 100_000: x.append(os.open('/dev/null', 0))\nraise Escaped('100,000 files')", reason="Errno 24|Errno 23"),
]

CRASHES = [
    Hostile("null pointer", "ctypes.string_at(0)", reason="SIGSEGV|last check"),
    Hostile("null pointer when asked", "def answer(a, b): ctypes.string_at(0)", reason="SIGSEGV|last check"),
    Hostile("abort", "os.abort()", reason="SIGABRT|last check"),
    Hostile("illegal instruction", "os.kill(os.getpid(), signal.SIGILL)"),
    Hostile("kills itself", "os.kill(os.getpid(), signal.SIGKILL)"),
    Hostile("alarm", "signal.alarm(1)\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(1)"),
    Hostile("overwrites the interpreter", "ctypes.memset(id(None), 0xFF, 64)\nctypes.memset(id(int), 0xFF, 400)", ("failed", "contained", "timeout")),
    Hostile("hangs up and goes on", """
import socket
for number in range(3, 64):
    try:
        socket.socket(fileno=os.dup(number)).shutdown(socket.SHUT_RDWR)
    except OSError: pass
time.sleep(60)
""", reason="closed its channel"),
    Hostile("exec of nonsense", "import types\nexec(types.CodeType(0, 0, 0, 0, 1, 0, b'\\xff' * 32, (), (), (), '', '', '', 0, b'', b''))"),
]
# fmt: on

GROUPS = {"time": TIME, "processes": PROCESSES, "memory": MEMORY, "floods": FLOODS, "crashes": CRASHES}

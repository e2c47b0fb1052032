"""Each limit by two programs: one that stays below it and passes, and one that does not, with the limit in its reason.

The surprise: most are the kernel's, and what it raises (MemoryError, OSError) a program can catch; those say "failed", as exceptions do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.code.execution import Job, Limits, Pool, Verdict, run_programs
from crystal.config import UserError

LIMITS = Limits(timeout_s=0.4, memory_bytes=256 << 20, file_bytes=1 << 20, open_files=64, processes=24)
MB = 1 << 20
ASKED = "assert answer() == 1"
CHILDREN = """
import os, time
told, tell = os.pipe()
for _ in range({n}):
    if os.fork() == 0:
        held = b"x" * ({mb} << 20)
        os.write(tell, b".")
        time.sleep({seconds})
        os._exit(0)
got = b""
while len(got) < {n}: got += os.read(told, 99)
def answer(): return 1
"""
THREADS = "import threading, time\nfor _ in range({n}): threading.Thread(target=time.sleep, args=(0.1,)).start()\ndef answer(): return 1"
FILES = "for i in range({n}):\n    with open(f'x{{i}}', 'wb') as file: file.write(bytes(65536))"
BURN = "import time\nwhile time.process_time() < {s}: pass\ndef answer(): return 1"


def function(body: str) -> str:
    """A program whose `answer` does `body` and returns 1."""
    return "def answer():\n    import os, time\n" + "".join(f"    {line}\n" for line in body.split("\n")) + "    return 1\n"


BELOW = {
    "CPU time": BURN.format(s=0.2),
    "sleep": function("time.sleep(0.8)"),
    "memory": function(f"x = b'x' * {100 * MB}"),
    "memory of all": CHILDREN.format(n=3, mb=50, seconds=0.05),
    "processes": CHILDREN.format(n=12, mb=1, seconds=0.05),
    "threads": THREADS.format(n=12),
    "file": function(f"with open('x', 'wb') as file: file.write(bytes({MB - 8192}))"),
    "files": function(FILES.format(n=9)),
    "open files": function("x = [open('/dev/null') for _ in range(40)]"),
    "message": function("pass") + "def text(): return 'x' * (16 << 20)",
    "recursion": "def f(n): return n and 1 + f(n - 1)\ndef answer(): return f(900) - 899",
}
ABOVE = {
    "CPU time": (BURN.format(s=9), "timeout", "more than 0.4 s of CPU time"),
    "CPU time when asked": (function("while True: pass"), "timeout", "more than 0.4 s of CPU time"),
    "sleep": (function("time.sleep(60)"), "timeout", "no end after 2 s"),
    "memory": (function(f"x = b'x' * {400 * MB}"), "failed", "MemoryError"),
    "memory of all": (CHILDREN.format(n=4, mb=120, seconds=20), "contained", "more than 256 MiB of memory in all its processes"),
    "processes": (CHILDREN.format(n=60, mb=1, seconds=20), "failed", "BlockingIOError"),
    "threads": (THREADS.format(n=500), "failed", "RuntimeError: can't start new thread"),
    "file": (function(f"with open('x', 'wb') as file: file.write(bytes({2 * MB}))"), "failed", "OSError: [Errno 27]"),
    "files": (function(FILES.format(n=99)), "failed", "OSError: [Errno 28]"),
    "open files": (function("x = [open('/dev/null') for _ in range(999)]"), "failed", "OSError: [Errno 24]"),
    "recursion": ("def answer(): return answer()", "failed", "RecursionError"),
}
CHECKS = {"message": f"{ASKED}\nassert len(text()) == 16 << 20"}
NEEDS_NAMESPACES = {"memory of all", "processes", "file", "files"}


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces", "seccomp"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    try:
        with Pool(LIMITS, workers=1, sandbox=request.param) as pool:
            yield pool
    except UserError as reason:
        pytest.skip(str(reason))


def verdict(pool: Pool, program: str, check: str = ASKED) -> Verdict:
    return pool.run([Job(program, check)])[0]


@pytest.mark.parametrize("limit", BELOW)
def test_below_a_limit_a_program_passes(pool: Pool, limit: str) -> None:
    if pool.sandbox["layer"] == "seccomp" and limit in NEEDS_NAMESPACES:
        assert not verdict(pool, BELOW[limit]).passed  # it has no namespaces, and may neither fork nor write
    else:
        assert verdict(pool, BELOW[limit], CHECKS.get(limit, ASKED)) == Verdict(True, "passed", "")


@pytest.mark.parametrize("limit", ABOVE)
def test_above_it_it_is_stopped_and_told_why(pool: Pool, limit: str) -> None:
    program, result, reason = ABOVE[limit]
    if pool.sandbox["layer"] == "seccomp" and limit in NEEDS_NAMESPACES:
        result, reason = "failed", "PermissionError: [Errno 1]"
    found = verdict(pool, program)
    assert (found.passed, found.result) == (False, result), found
    assert found.reason.startswith(reason)


def test_a_large_answer_ends_the_program(pool: Pool) -> None:
    """Above 64 MiB no answer is taken; memory is raised so that it is not what ends it."""
    with Pool(replace(LIMITS, timeout_s=4.0, memory_bytes=1 << 30), workers=1, sandbox=pool.sandbox["layer"]) as roomy:
        found = verdict(roomy, "def answer(): return 'x' * (80 << 20)")
    assert not found.passed and found.result in ("failed", "contained")


def test_there_is_no_core_and_no_output(pool: Pool) -> None:
    program = (
        "import os, resource, sys\ndef answer():\n    for _ in range(100): print('x' * 1_000_000)\n"
        "    return [resource.getrlimit(resource.RLIMIT_CORE), os.write(1, b'x' * 65536), os.write(2, b'x' * 65536), sys.stdin.read()]"
    )
    assert verdict(pool, program, "assert answer() == [(0, 0), 65536, 65536, '']").passed


def test_a_limit_binds_the_checks_too(pool: Pool) -> None:
    """What a program answers can keep its checks busy for ever, or fill their memory."""
    numbers = "def answer():\n    while True: yield 1"
    assert verdict(pool, numbers, "for number in answer(): assert number == 1").result == "timeout"
    assert verdict(pool, "def answer(): return 60", "x = [0] * 10 ** answer()").reason.startswith(("MemoryError", "OverflowError"))


def test_a_limit_ends_a_program_soon(pool: Pool) -> None:
    began = time.monotonic()
    verdict(pool, "import time\ntime.sleep(60)")
    assert time.monotonic() - began < 20


def test_a_worker_is_as_good_after_a_limit_as_before(pool: Pool) -> None:
    for program, *_ in list(ABOVE.values())[:3]:
        assert not verdict(pool, program).passed
        assert verdict(pool, "def answer(): return 1").passed


def test_verdicts_come_in_the_order_of_the_jobs_and_repeat() -> None:
    """Sets of strings come in the same order each time, which an unfixed hash seed would rarely do."""
    jobs = [Job(f"import time\ntime.sleep({0.2 - i / 20})\nraise Exception({i}, {{'a', 'b', 'c', 'd'}})", "pass") for i in range(5)]
    once = run_programs(jobs, timeout_s=5.0, workers=5)
    assert [verdict.reason.split(",")[0] for verdict in once] == [f"Exception: ({i}" for i in range(5)]
    assert once == run_programs(jobs, timeout_s=5.0, workers=2)

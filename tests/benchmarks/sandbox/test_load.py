"""The same verdicts on an idle machine and on a busy one, with 1, 2 and 8 workers, in any order, beside neighbours that burn.

The surprise: nothing here waits for the machine to be idle. What is compared is verdicts, and with the clock deciding they would differ.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.code.execution import Job, Limits, Pool

LIMITS = Limits(timeout_s=0.3, memory_bytes=256 << 20)  # so the clock ends what sleeps after 1.5 s
N_BUSY = 4
ASKED = "assert answer() == 1"
BURN = "import time\ndef answer():\n    while time.process_time() < {s}: pass\n    return {n}"

PASSES = [
    *(BURN.format(s=share * LIMITS.timeout_s, n=1) for share in (0.4, 0.45, 0.5, 0.55, 0.6)),
    *(f"import time\ntime.sleep({s})\ndef answer(): return 1" for s in (0.1, 0.3, 0.6)),
    *(f"def answer(): return len({'x' * n!r}) - {n - 1}" for n in range(1, 9)),
    *(f"def answer(): return sum(i * i for i in range({n})) > 0 and 1" for n in (10_000, 100_000, 300_000)),
]
FAILS = [
    *(BURN.format(s=share * LIMITS.timeout_s, n=0) for share in (0.4, 0.6)),
    *(f"def answer(): return {n}" for n in range(2, 8)),
    "import time\ntime.sleep(0.3)\ndef answer(): raise ValueError",
    "import os\nos._exit(0)",
    "def answer(:",
]
BURNS = [
    "while True: pass",
    "def answer():\n    while True: pass",
    "9**9**9",
    "import os\nfor _ in range(2): os.fork()\nwhile True: pass",
]
SLEEPS = ["import time\ntime.sleep(60)", "import threading\nthreading.Event().wait()"]
EXPECTED = [
    *((program, "passed") for program in PASSES),
    *((program, "failed") for program in FAILS),
    *((program, "timeout") for program in BURNS + SLEEPS),
]


@contextmanager
def busy(n: int) -> Iterator[None]:
    """`n` processes that keep the cores busy."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def differing(workers: int, seed: int) -> dict[str, tuple[str, str]]:
    """The programs, in an order drawn by `seed`, whose verdict is not the expected one: what was expected, what came."""
    order = random.Random(seed).sample(EXPECTED, len(EXPECTED))
    with Pool(LIMITS, workers=workers) as pool:
        verdicts = pool.run(Job(program, ASKED) for program, _ in order)
    return {
        program: (expected, f"{verdict.result}: {verdict.reason}")
        for (program, expected), verdict in zip(order, verdicts, strict=True)
        if verdict.result != expected
    }


def test_verdicts_are_the_same_with_any_number_of_workers_in_any_order() -> None:
    for seed, workers in enumerate((1, 2, 8)):
        assert differing(workers, seed) == {}


def test_and_on_a_busy_machine() -> None:
    with busy(N_BUSY):
        for seed, workers in enumerate((1, 2, 8), start=3):
            assert differing(workers, seed) == {}

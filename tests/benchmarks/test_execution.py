"""What the pool makes of workers that die, break or isolate less than they did; verdicts themselves are tested in sandbox/."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.code import execution
from benchmarks.code.execution import Broken, Job, Limits, Pool, Verdict, Worker, judged
from benchmarks.code.sandbox import layers
from crystal.config import UserError

JOB = Job("def add(a, b):\n    return a + b", "assert add(2, 3) == 5")
PASSED = Verdict(True, "passed", "")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    try:
        with Pool(Limits(5.0), workers=2) as made:
            yield made
    except UserError as error:
        pytest.skip(str(error))


def test_verdicts_come_in_the_order_of_the_jobs(pool: Pool) -> None:
    jobs = [Job(f"import time\ntime.sleep({0.2 - i / 20})\nx = {i}", f"assert x == -1, {i}") for i in range(5)]
    assert [verdict.reason for verdict in pool.run(jobs)] == [f"AssertionError: {i}" for i in range(5)]


def test_each_verdict_is_told(pool: Pool) -> None:
    told: list[None] = []
    pool.run([JOB] * 5, ended=lambda: told.append(None))
    assert len(told) == 5


def test_any_line_end_ends_a_line(pool: Pool) -> None:
    job = Job("def f():\r    raise ValueError\r\n", "try:\r    f()\r\nexcept ValueError:\r    pass\nelse:\n    assert f() == 1")
    assert pool.run([job]) == [PASSED]


def test_a_program_that_cannot_be_contained_is_no_verdict(pool: Pool) -> None:
    if pool.layer == "seccomp":
        pytest.skip("a /tmp of its own is what namespaces give")
    with pytest.raises(Broken, match="a program could not be contained: .*mount /tmp"):
        Pool(Limits(5.0, file_bytes=-1), workers=2)


def test_a_name_that_is_no_layer_is_refused() -> None:
    with pytest.raises(UserError, match="sandbox=none; expected auto or"):
        Pool(Limits(), sandbox="none")


def test_nothing_that_isolates_means_nothing_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(layer: str, control: int, limits: Limits) -> list[str]:
        raise LookupError("not here")

    monkeypatch.setattr(layers, "command", absent)
    with pytest.raises(
        UserError, match=r"bubblewrap: not here; namespaces: not here; seccomp: not here.*; expected .*; install bubblewrap"
    ):
        Pool(Limits())


def test_a_layer_that_a_program_gets_out_of_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here all layers are the unsafe one under another name, in which the program of the trial reaches everything."""
    plain = layers.command
    monkeypatch.setattr(layers, "command", lambda layer, control, limits: plain("unsafe", control, limits))
    with pytest.raises(UserError, match="bubblewrap: a program in it got out .*network.*files"):
        Pool(Limits())


def test_a_worker_that_dies_is_started_again(pool: Pool) -> None:
    (worker, _) = pool._workers
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    assert judged(worker, JOB) == PASSED and pool.run([JOB]) == [PASSED]


def test_a_program_whose_worker_dies_twice_is_contained(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    (worker, _) = pool._workers
    monkeypatch.setattr(worker, "ask", lambda job: None)
    assert judged(worker, JOB) == Verdict(False, "contained", "it ended the worker that ran it")


def test_a_broken_sandbox_is_no_verdict(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def broken(job: Job) -> Any:
        tries.append(job)
        raise Broken("no room")

    (worker, _) = pool._workers
    monkeypatch.setattr(worker, "ask", broken)
    with pytest.raises(RuntimeError, match="no room"):
        judged(worker, JOB)
    assert len(tries) == 2
    monkeypatch.undo()
    assert judged(worker, JOB) == PASSED


def test_a_worker_that_isolates_less_than_the_first_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Worker.start

    def weaker(self: Worker) -> None:
        started(self)
        weaker.count += 1  # type: ignore[attr-defined]
        if weaker.count == 2:  # type: ignore[attr-defined]
            self.facts = self.facts | {"missing": ["system calls filtered"]}

    weaker.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Worker, "start", weaker)
    with pytest.raises(RuntimeError, match="has changed: a worker lacks .*system calls filtered"):
        Pool(Limits(), workers=2, sandbox="unsafe")


def test_nothing_is_left_of_a_pool(pool: Pool) -> None:
    with Pool(Limits(), workers=2, sandbox="unsafe") as other:
        folders = [Path(worker.folder.name) for worker in other._workers]
        pids = [worker.process.pid for worker in other._workers]
        assert other.run([JOB]) == [PASSED]
    assert not any(folder.exists() for folder in folders)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_sandbox_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.layers, "MAIN", "raise SystemExit('no such luck')")
    with pytest.raises(UserError, match="unsafe: no such luck"):
        Pool(Limits(), sandbox="unsafe")

"""Runs programs in the sandbox and says which pass: a pool of warm workers, each judging one program at a time.

What decides is `sandbox/judge.py`, in a process that the program cannot reach; what isolates is chosen by `sandbox/layers.py` and told in
`Pool.sandbox`. docs/evaluation.md says what is covered and what is not.

The surprise: a worker that dies under a program is started again, and the program with it, once. Dying twice is the program's doing.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Any, Literal

from benchmarks.code.sandbox import layers
from benchmarks.code.sandbox.limits import Limits as Limits
from crystal.errors import UserError, require
from crystal.machine import usable_cores

READY_S = 60.0  # that a worker may take to start
PATIENCE = 20  # clock ceilings that a worker may take for one program, starved of cores, before it is given up


@dataclass(frozen=True)
class Job:
    """One program and what decides whether it passes.

    program: untrusted. check: trusted, raises unless the program is right; `given`, trusted too, is run before it in the same namespace.
    names: what `check` takes from the program; empty: the names that nothing else there defines (sandbox/judge.py).
    """

    program: str
    check: str
    given: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """`reason` is empty for a pass; otherwise the exception, the signal, or the limit that was met, in a line.

    contained: the sandbox ended the program, not its check.
    """

    passed: bool
    result: Literal["passed", "failed", "timeout", "contained"]
    reason: str


class Broken(RuntimeError):
    """The sandbox itself failed."""


class Worker:
    """One worker's process and the socket to it."""

    def __init__(self, layer: str, limits: Limits) -> None:
        """Raises LookupError, with the reason, where the layer does not work here."""
        self.layer, self.limits = layer, limits
        self.start()

    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="crystal-", ignore_cleanup_errors=True)
        try:
            self.process, channel = layers.start(self.layer, self.limits, self.folder.name)
        except OSError as error:
            raise LookupError(str(error)) from error
        channel.settimeout(READY_S)
        self.channel, self.lines = channel, channel.makefile("r", encoding="utf-8")
        try:
            self.facts: dict[str, Any] = json.loads(self.lines.readline())
        except (OSError, ValueError):
            os.killpg(self.process.pid, signal.SIGKILL)
            assert self.process.stderr is not None
            said = self.process.stderr.read().decode("utf-8", "replace").strip()
            self.close()
            raise LookupError(said.split("\n")[-1] or "its worker does not start") from None
        channel.settimeout(PATIENCE * self.limits.wall_s)

    def ask(self, job: Job) -> Verdict | None:
        """The verdict on one program, None where the worker has died of it. Raises TimeoutError and Broken."""
        with _file(job.program) as program, _file(json.dumps(asdict(job))) as check, _file("") as verdict:
            try:
                socket.send_fds(self.channel, [b"."], [file.fileno() for file in (program, check, verdict)])
                ended: dict[str, Any] = json.loads(self.lines.readline())
            except (BrokenPipeError, ConnectionResetError, json.JSONDecodeError):
                return None
            if "broken" in ended:
                raise Broken(f"the sandbox ({self.layer}) failed, which says nothing about the program: {ended['broken']}")
            verdict.seek(0)
            said = verdict.read()
        if ended["over"]:
            return Verdict(False, *ended["over"])
        if not said:
            return Verdict(False, "contained", "its checks met a limit")
        told = json.loads(said)
        return Verdict(told["passed"], told["result"], f"{ended['how']} {told['reason']}".strip())

    def restart(self) -> None:
        """Raises Broken where what has isolated before does not any more."""
        before = self.facts
        self.close()
        try:
            self.start()
        except LookupError as error:
            raise Broken(f"the sandbox ({self.layer}) does not start again: {error}") from error
        self.refuse_unlike(before)

    def refuse_unlike(self, facts: dict[str, Any]) -> None:
        """Raise Broken where this worker isolates otherwise than one with these facts, which are what the record says."""
        if self.facts != facts:
            self.close()
            raise Broken(
                f"the sandbox ({self.layer}) has changed: a worker lacks {self.facts['missing']}, an earlier one {facts['missing']}"
            )

    def close(self) -> None:
        """End the worker, and with it all that is in it."""
        with suppress(OSError):
            self.lines.close()
        self.channel.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        self.folder.cleanup()


def _file(text: str) -> IO[str]:
    """A file without a name that begins with `text`, to be handed to a worker."""
    file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  who calls closes it
    file.write(text)
    file.seek(0)
    return file


class Pool:
    """Warm workers, `workers` of them (None: as many as there are cores), to be used as a context manager.

    sandbox: auto (the first layer that works here), bubblewrap, namespaces, seccomp, or unsafe: resource limits only. Raises UserError
    where none of those asked for isolates.
    """

    def __init__(self, limits: Limits, *, workers: int | None = None, sandbox: str = "auto") -> None:
        self._workers = _workers(limits, sandbox, workers or usable_cores())
        first = self._workers[0]
        self.limits, self.layer = limits, first.layer
        self.sandbox = {"layer": first.layer, "has": first.facts["has"], "missing": first.facts["missing"]}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def run(self, jobs: Iterable[Job], *, ended: Callable[[], None] = lambda: None) -> list[Verdict]:
        """Verdicts in the order of the jobs; ended() is called as each is there. Raises RuntimeError where the sandbox itself fails."""
        free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        counting = Lock()
        for worker in self._workers:
            free.put(worker)

        def run(job: Job) -> Verdict:
            worker = free.get()
            try:
                return judged(worker, job)
            finally:
                free.put(worker)
                with counting:
                    ended()

        with ThreadPoolExecutor(len(self._workers)) as threads:
            return list(threads.map(run, jobs))


def run_programs(jobs: Sequence[Job], *, timeout_s: float, workers: int | None = None, sandbox: str = "auto") -> list[Verdict]:
    """Verdicts in the order of `jobs`, by a pool for this once. Raises as `Pool` and `Pool.run` do."""
    with Pool(Limits(timeout_s), workers=workers, sandbox=sandbox) as pool:
        return pool.run(jobs)


def judged(worker: Worker, job: Job) -> Verdict:
    """The verdict of one worker, which is started again where it died. Raises RuntimeError where the sandbox broke twice."""
    broken = None
    for _ in range(2):
        try:
            said = worker.ask(job)
        except TimeoutError:
            worker.restart()
            return Verdict(False, "timeout", f"no end after {PATIENCE * worker.limits.wall_s:g} s, not even by its limits")
        except Broken as error:
            broken = error
        else:
            if said is not None:
                return said
        worker.restart()
    if broken is not None:
        raise broken
    return Verdict(False, "contained", "it ended the worker that ran it")


def _workers(limits: Limits, sandbox: str, n: int) -> list[Worker]:
    """n workers of the first layer asked for that works."""
    known = ("auto", *layers.ISOLATING, "unsafe")
    require(sandbox in known, f"sandbox={sandbox}", " or ".join(known), "mend sandbox")
    refused = []
    for layer in layers.ISOLATING if sandbox == "auto" else (sandbox,):
        try:
            return _alike(layer, limits, n)
        except LookupError as reason:
            refused.append(f"{layer}: {reason}")
    raise UserError(
        f"sandbox={sandbox}, and nothing of it isolates programs here ({'; '.join(refused)}); expected a layer that does; "
        "install bubblewrap, or give sandbox=unsafe to run them with resource limits only"
    )


def _alike(layer: str, limits: Limits, n: int) -> list[Worker]:
    """n workers of this layer, started at once, the first one tried. Raises LookupError where that fails, Broken where another does."""
    with ThreadPoolExecutor(n) as threads:
        starting = [threads.submit(start, layer, limits) for start in (tried, *[Worker] * (n - 1))]
    workers = [one.result() for one in starting if one.exception() is None]
    try:
        first = starting[0].result()
        for one in starting[1:]:
            if reason := one.exception():
                raise Broken(f"the sandbox ({layer}) started once and not again: {reason}") from reason
            one.result().refuse_unlike(first.facts)
    except BaseException:
        for worker in workers:
            worker.close()
        raise
    return workers


def tried(layer: str, limits: Limits) -> Worker:
    """A worker of this layer, in which a program has tried to get out. Raises LookupError, with the reason, where it does not isolate."""
    worker = Worker(layer, limits)
    if layer == "unsafe":
        return worker
    reached = _reached(worker) if worker.facts["isolates"] else "no namespaces for programs, and no filter"
    if reached:
        worker.close()
        raise LookupError(reached)
    return worker


def _reached(worker: Worker) -> str:
    """What a program in this worker could reach; empty: nothing of the network, files and processes here."""
    with tempfile.TemporaryDirectory(prefix="crystal-") as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        os.chmod(folder, 0o777)
        with subprocess.Popen(["sleep", "20"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bystander:
            target = (listener.getsockname()[1], str(Path(folder) / "note"), bystander.pid)
            said = judged(worker, Job(layers.ESCAPE, f"assert escapes(*{target}) == [], escapes(*{target})", names=("escapes",)))
            killed = bystander.poll() is not None
            bystander.kill()
    return "" if said.passed and not killed else f"a program in it got out ({said.reason or 'to another process'})"

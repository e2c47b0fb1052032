"""One program's life: a candidate that executes it, a judge that checks it, and who watches both until neither is left.

With namespaces of its own a candidate is their first process, whose death ends all that is in them; a signal that it sends itself does
nothing there unless it handles it. Without, the filter keeps it from having children.

The worker, of which a candidate is a copy, never reads a program, a check or a verdict: it hands on files. So a candidate that searches its
own memory finds no trace of its check, nor of any before it.

The surprise: the clock ceiling counts only time that the program had, or could have had, a core: what it has waited for one is given back.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from benchmarks.code.sandbox import candidate, judge, kernel, landlock, namespaces, seccomp
from benchmarks.code.sandbox.limits import JUDGE_MEMORY_BYTES, Limits

FIRST_LOOK_S, LOOK_S = 0.02, 0.05
ENDING_S = 2.0  # that a candidate whose channel has closed may take to be gone
JUDGE_ID = 65533  # who a judge is, where root starts the worker
NO_CANDIDATE, NOT_SET_UP = 3, 4  # a judge's exit status where its candidate was gone too early, and where it could not begin
HAS_PROC = Path("/proc/self/stat").exists()


class SandboxBroken(Exception):
    """The sandbox itself failed, which says nothing about the program."""


@dataclass(frozen=True)
class Isolation:
    """How programs are kept apart here."""

    contained: bool  # the worker has namespaces, so what it sees of processes is its own
    own_namespaces: bool  # each program has some too
    filtered: bool
    landlocked: bool
    privileged: bool  # the worker's privileges are kept: sandbox=unsafe


class Files(NamedTuple):
    """Descriptors of what makes a job: the program, its check (and what goes with it, in JSON), and where the verdict goes, in JSON."""

    program: int
    check: int
    verdict: int


class Over(NamedTuple):
    """A limit was met: the verdict's result and reason."""

    result: str
    reason: str


class Program:
    """Start it, watch it, end it: `run` does all three, once."""

    def __init__(self, files: Files, limits: Limits, isolation: Isolation, control: int) -> None:
        self.files, self.limits, self.isolation, self.control = files, limits, isolation, control

    def run(self) -> dict[str, Any]:
        """cpu_s; `over`, where a limit was met, which is then the verdict; `how` the candidate ended, where it did before its judge.

        Raises SandboxBroken; SystemExit where `control` has closed.
        """
        theirs, judges = socket.socketpair()
        judging, judged = os.pipe()
        self.candidate, setting_up = self._start_candidate(theirs)
        self.judge = self._start_judge(judges, judged)
        for end in (theirs.detach(), judges.detach(), judged):
            os.close(end)
        try:
            over, how = self._watch(judging), ""
            ended = os.waitid(os.P_PID, self.judge, os.WEXITED | os.WNOWAIT) if over is None else None
            if ended is not None and (ended.si_code, ended.si_status) == (os.CLD_EXITED, NOT_SET_UP):
                raise SandboxBroken("a judge could not be set up")
            if ended is not None and (ended.si_code, ended.si_status) == (os.CLD_EXITED, NO_CANDIDATE):
                if problem := setting_up.recv(500):
                    raise SandboxBroken(problem.decode("utf-8", "replace"))
                over, how = self._ending()
        finally:
            used = self._end()
            os.close(judging)
            setting_up.close()
        if used >= self.limits.timeout_s:
            over = Over("timeout", f"more than {self.limits.timeout_s:g} s of CPU time")
        return {"cpu_s": round(used, 4), "over": over, "how": how}

    def _start_candidate(self, channel: socket.socket) -> tuple[int, socket.socket]:
        """Its pid, and what says why it could not be set up: a line that it closes before it executes anything."""
        line, end = socket.socketpair()
        with end:
            fork = namespaces.clone_for_program if self.isolation.own_namespaces else os.fork
            pid = _fork(lambda: self._be_candidate(channel, end), keep=[channel.fileno(), self.files.program, end.fileno()], fork=fork)
            if self.isolation.own_namespaces:
                namespaces.map_program(pid)
            line.send(b".")
        return pid, line

    def _be_candidate(self, channel: socket.socket, end: socket.socket) -> None:
        with end:
            end.recv(1)
            try:
                self._contain()
            except Exception as error:
                end.send(f"a program could not be contained: {error}".encode())
                return
        candidate.serve(channel, _content(self.files.program))

    def _contain(self) -> None:
        """Take from this process all that the isolation takes."""
        os.setsid()
        if self.isolation.own_namespaces:
            namespaces.settle(self.limits.file_bytes)
        elif not self.isolation.privileged:
            kernel.drop_privileges()
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # a worker that is killed could not end it any more
            if self.isolation.landlocked:
                restrict_files()
        self.limits.apply(memory_bytes=self.limits.memory_bytes, processes=self.isolation.own_namespaces)
        if self.isolation.filtered:
            seccomp.install(strict=not self.isolation.own_namespaces)

    def _start_judge(self, channel: socket.socket, judged: int) -> int:
        def be_judge() -> None:
            try:
                self._become_judge()
            except Exception:
                os._exit(NOT_SET_UP)
            said = judge.judge(channel, json.loads(_content(self.files.check)))
            os.write(self.files.verdict, json.dumps(said).encode())
            os._exit(NO_CANDIDATE if said["reason"] == judge.GONE else 0)

        return _fork(be_judge, keep=[channel.fileno(), self.files.check, self.files.verdict, judged])

    def _become_judge(self) -> None:
        if self.isolation.contained and os.geteuid() == 0:
            os.setresgid(JUDGE_ID, JUDGE_ID, JUDGE_ID)
            os.setresuid(JUDGE_ID, JUDGE_ID, JUDGE_ID)
        if not self.isolation.privileged:
            kernel.drop_privileges()
            kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        self.limits.apply(memory_bytes=JUDGE_MEMORY_BYTES, processes=False)

    def _watch(self, judging: int) -> Over | None:
        """Until the judge has ended, or the limit that is met before."""
        poll = select.poll()
        poll.register(judging, 0)  # closing is always told
        poll.register(self.control, 0)
        began, wait_s = time.monotonic(), FIRST_LOOK_S
        while True:
            for ready, _ in poll.poll(1000 * wait_s):
                if ready == self.control:
                    raise SystemExit  # nobody waits for the verdict any more
                return None
            over = self._over(time.monotonic() - began)
            if over is not None:
                return over
            wait_s = LOOK_S

    def _over(self, elapsed_s: float) -> Over | None:
        """The limit that has been met by now."""
        limits, family = self.limits, list(self._family())
        cpu_s, resident = usage(family)
        if cpu_s >= limits.timeout_s:
            return Over("timeout", f"more than {limits.timeout_s:g} s of CPU time")
        if resident > limits.memory_bytes and proportional(family) > limits.memory_bytes:
            return Over("contained", f"more than {limits.memory_bytes >> 20} MiB of memory in all its processes")
        if elapsed_s > limits.wall_s and elapsed_s - waited(family) > limits.wall_s:
            return Over("timeout", f"no end after {limits.wall_s:g} s ({cpu_s:.2f} s of CPU time)")
        return None

    def _family(self) -> Iterator[int]:
        """The processes of this program and of its judge."""
        if self.isolation.contained:  # whoever is here besides the worker
            yield from (int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid())
        elif HAS_PROC:
            waiting = [self.candidate, self.judge]
            while waiting:
                pid = waiting.pop()
                yield pid
                waiting += children(pid)

    def _ending(self) -> tuple[Over | None, str]:
        """How the candidate, whose channel has closed, has ended, or the limit that it met before."""
        began, wait_s = time.monotonic(), 0.001
        while (elapsed_s := time.monotonic() - began) < ENDING_S:
            if ended := os.waitid(os.P_PID, self.candidate, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                return None, _how(ended)
            if over := self._over(elapsed_s):
                return over, ""
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LOOK_S)
        return None, "closed its channel"

    def _end(self) -> float:
        """Kill what is left, wait until it is gone; CPU seconds of all."""
        for pid in (self.candidate, self.judge):
            os.kill(pid, signal.SIGKILL)
        if self.isolation.contained:
            assert os.getpid() == 1, "the whole machine is not ours to kill"
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            with suppress(ProcessLookupError, PermissionError):  # it may have ended before it had a group of its own
                os.killpg(self.candidate, signal.SIGKILL)
        used = 0.0
        while True:
            try:
                _, _, spent = os.wait4(-1, 0)
            except ChildProcessError:
                return used
            used += spent.ru_utime + spent.ru_stime
            for pid in children(os.getpid()) if self.isolation.privileged else ():  # orphans come to the worker
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _content(file: int) -> str:
    """The text of a file that the fork was given, which is closed: a program is not to write there. Line ends as Python reads them."""
    try:
        return os.read(file, os.fstat(file).st_size).decode().replace("\r\n", "\n").replace("\r", "\n")
    finally:
        os.close(file)


def restrict_files() -> None:
    """Leave this process the system's files to read, by Landlock."""
    landlock.restrict([*namespaces.readable(), os.path.dirname(__file__), *(f"/dev/{name}" for name in namespaces.DEVICES)])


def _fork(be: Callable[[], None], *, keep: list[int], fork: Callable[[], int] = os.fork) -> int:
    """The pid of a new process that does `be` and ends, with stdin, stdout, stderr and the files `keep` open."""
    pid = fork()
    return pid or _only(be, keep)


def _only(be: Callable[[], None], keep: list[int]) -> NoReturn:
    try:
        first = 3
        for file in sorted(keep):
            os.closerange(first, file)
            first = file + 1
        os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        be()
    except BaseException:
        os._exit(70)
    os._exit(0)


def usage(family: list[int]) -> tuple[float, int]:
    """CPU seconds, with those of children that are gone, and resident bytes that are not shared, of all processes together."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    ticks = pages = 0
    for pid in family:
        with suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
            resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
            pages += resident - shared
    return ticks / tick, pages * page


def proportional(family: list[int]) -> int:
    """Resident bytes of all processes together, what several share counted once; dearer to find out than `usage`."""
    kilobytes = 0
    for pid in family:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes << 10


def waited(family: list[int]) -> float:
    """Seconds that these processes' threads could have run but had no core."""
    nanoseconds = 0
    for pid in family:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError, IndexError):
                nanoseconds += int(task.read_text().split()[1])
    return nanoseconds / 1e9


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _how(ended: Any) -> str:
    if ended.si_code == os.CLD_EXITED:
        return f"ended with status {ended.si_status}"
    try:
        return f"killed by {signal.Signals(ended.si_status).name}"
    except ValueError:
        return f"killed by signal {ended.si_status}"

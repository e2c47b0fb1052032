"""The process that runs one program: limits first, then the program, then the word that its end was reached.

Started by `execution` as a script; imports nothing of this project, and as little as it can of the standard library:
its start-up is paid for every program. Arguments: file descriptor, CPU seconds, bytes of memory, bytes of a file,
processes (-1: not limited). The job (32 bytes of nonce, then the program) comes in on the descriptor; READY goes out on
it when the limits hold, then the nonce or a reason.

The surprise: the nonce is written by the process that was started and no other, so a fork that carries on through the
tests does not speak for it.
"""

import os
import resource
import sys
import types

READY = b"\x06"
NONCE_BYTES = 32
REASON_CHARS = 500
OPEN_FILES = 256


def limit(kind: int, soft: int, hard: int) -> None:
    """Set one limit, never above what this process was given."""
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def apply_limits(cpu_s: int, memory_bytes: int, file_bytes: int, processes: int) -> None:
    limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)  # SIGXCPU can be caught; the SIGKILL a second later cannot
    limit(resource.RLIMIT_AS, memory_bytes, memory_bytes)
    limit(resource.RLIMIT_FSIZE, file_bytes, file_bytes)
    limit(resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
    limit(resource.RLIMIT_CORE, 0, 0)
    if processes >= 0:
        limit(resource.RLIMIT_NPROC, processes, processes)


def reason_of(error: BaseException, source: str) -> str:
    """The exception in one line; one without a message (a bare assert) is told by the line that raised it."""
    name = type(error).__name__
    try:
        message = str(error)
    except BaseException:
        return name
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if not message and line:
        message = source.split("\n")[line - 1].strip()
    return f"{name}: {message}"[:REASON_CHARS] if message else name


def main() -> None:
    channel, *limits = (int(argument) for argument in sys.argv[1:])
    me, leave, speak, whoami = os.getpid(), os._exit, os.write, os.getpid
    with os.fdopen(os.dup(channel), "rb") as job:
        nonce, source = job.read(NONCE_BYTES), job.read().decode("utf-8")
    sys.argv[:] = [""]
    os.environ.clear()
    # A module of its own, as dataclasses and pickle look for one; not `__main__`, whose block the peers do not run.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    apply_limits(*limits)
    speak(channel, READY)
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        word, status = reason_of(error, source).encode("utf-8", "replace"), 1
    else:
        word, status = nonce, 0
    if whoami() == me:
        speak(channel, word)
    leave(status)


if __name__ == "__main__":
    main()

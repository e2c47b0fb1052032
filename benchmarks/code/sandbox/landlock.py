"""Files by Landlock, for programs that share the system's own view of the files: read what the interpreter needs, and nothing else.

The surprise: it also keeps a program from looking into the memory of processes outside, `/proc/PID/mem` of its judge for one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from benchmarks.code.sandbox import kernel

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EVERY_RIGHT = (1 << 13) - 1  # of its first version, Linux 5.13: execute, write, read files and folders, nine ways to make and remove
READ = 1 << 0 | 1 << 2 | 1 << 3
READ_FILE = 1 << 2
PATH_BENEATH = 1


class _Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def restrict(paths: Iterable[str]) -> None:
    """From now on this process, and all that it starts, may read what is in `paths` only. Raises OSError, also without Landlock."""
    rights = ctypes.c_uint64(EVERY_RIGHT)
    rules = kernel.call(CREATE_RULESET, ctypes.byref(rights), ctypes.sizeof(rights), 0)
    try:
        for path in paths:
            beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = READ if os.path.isdir(path) else READ_FILE
            try:
                kernel.call(ADD_RULE, rules, PATH_BENEATH, ctypes.byref(_Beneath(allowed, beneath)), 0)
            finally:
                os.close(beneath)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.call(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)

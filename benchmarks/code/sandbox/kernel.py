"""System calls of Linux that Python 3.11 has no function for, by ctypes.

The surprise: the library is loaded as a `PyDLL`, which keeps the interpreter's lock during a call. `clone` returns twice, and in the new
process no other thread is there to give a lock back.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from typing import Any

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
CAPABILITY_VERSION_3 = 0x20080522
# Numbers of the calls that libc has no function for, by machine.
CLONE = {"x86_64": 56, "aarch64": 220}
MOUNT_SETATTR = 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

MACHINE = platform.machine()
_libc = ctypes.PyDLL(None, use_errno=True)
_ME, _NO_CAPABILITIES = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()


def _checked(result: int, what: str) -> int:
    """Raise OSError, naming the call, where libc has returned -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def clone(namespaces: int) -> int:
    """os.fork() into new namespaces: the child's pid in the parent, 0 in the child. Raises OSError."""
    if MACHINE not in CLONE:
        raise OSError(f"clone: not known on {MACHINE}")
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid = _libc.syscall(CLONE[MACHINE], namespaces | signal.SIGCHLD, 0, 0, 0, 0)
    (api.PyOS_AfterFork_Parent if pid else api.PyOS_AfterFork_Child)()
    return _checked(pid, "clone")


def call(number: int, *arguments: Any) -> int:
    """A call by its number. Raises OSError."""
    return _checked(_libc.syscall(number, *arguments), f"system call {number}")


def unshare(namespaces: int) -> None:
    _checked(_libc.unshare(namespaces), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _checked(_libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def make_read_only(target: str) -> None:
    """A mount and all below it: no writing, no devices, no set-user-id programs. Linux 5.12 or newer."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    call(MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))


def change_root(folder: str) -> None:
    """Make `folder`, a mount, the root, and leave nothing of the old one."""
    os.chdir(folder)
    call(PIVOT_ROOT[MACHINE], b".", b".")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def prctl(option: int, value: int, pointer: ctypes.Array | ctypes.Structure | None = None) -> None:
    third = ctypes.c_ulong(0) if pointer is None else ctypes.byref(pointer)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), third, ctypes.c_ulong(0), ctypes.c_ulong(0)), f"prctl {option}")


def drop_privileges() -> None:
    """Give up every capability, for good: none is left, and no program that is started can bring one."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    _checked(_libc.capset(ctypes.byref(_ME), ctypes.byref(_NO_CAPABILITIES)), "capset")

"""Namespaces: what a worker sees of the system, and what one program sees of the worker.

A worker lives in namespaces made by bubblewrap or by `enter`: no network, only the system's folders and the interpreter's, read-only. Each
program gets some of its own on top of them (`clone_for_program`): no other process, an empty /tmp, no privileges and no /proc.

The surprise: root is root also in a user namespace, as far as the files of the kernel go. So a worker started by root has no user
namespace, and its programs get one in which they are somebody else.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from benchmarks.code.sandbox import kernel

INSIDE, OUTSIDE = 65534, 65534  # who a program is; and who that is outside, where root starts the worker ("nobody")
OF_WORKER = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP
OF_PROGRAM = kernel.NEWUSER | kernel.NEWPID | kernel.NEWNS | kernel.NEWIPC
DEVICES = ("null", "zero", "full", "random", "urandom")
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/localtime", "/nix/store")


def readable() -> list[str]:
    """What a worker sees of the system's files: the system's programs and libraries, and this Python."""
    paths = [path for path in SYSTEM if os.path.lexists(path)]
    return paths + [prefix for prefix in {sys.base_prefix, sys.base_exec_prefix} if not prefix.startswith("/usr/") and prefix != "/usr"]


def interpreter() -> str:
    """The interpreter itself, not a link in a virtual environment, whose folder a worker does not see."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def enter(shown: dict[str, str]) -> None:
    """Move this process into a worker's namespaces, as the first process of them, with `shown` (folder inside: folder) to be read besides.

    Returns in a new process; the old one waits for it and ends as it does. Raises OSError where the system does not permit them.
    """
    root = os.geteuid() == 0
    me = (os.geteuid(), os.getegid())
    kernel.unshare(OF_WORKER if root else OF_WORKER | kernel.NEWUSER)
    if not root:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # lost with the change of privileges, and with it the own files in /proc
        map_ids("self", outside=me, inside=me)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _build_root(shown)


def _build_root(shown: dict[str, str]) -> None:
    """A root of its own, from read-only views of the system's folders."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    shown = dict(zip(readable(), readable(), strict=True)) | shown | {f"/dev/{name}": f"/dev/{name}" for name in DEVICES}
    opened = {inside: (path, os.open(path, os.O_PATH | os.O_NOFOLLOW)) for inside, path in shown.items()}
    root = "/tmp"  # opened before, because what is to be shown may lie in there
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=1m")
    for inside, (path, source) in opened.items():
        _show(path, source, root + inside)
        os.close(source)
    for folder in ("proc", "tmp", "dev/shm"):
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    kernel.mount("proc", f"{root}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV)
    kernel.change_root(root)
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)


def _show(path: str, source: int, target: str) -> None:
    """Make the file or folder `path`, opened as `source`, visible at `target`, read-only; a link stays a link."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    mode = os.fstat(source).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink("", dir_fd=source), target)
        return
    if stat.S_ISDIR(mode):
        os.makedirs(target, exist_ok=True)
    else:
        Path(target).touch()
    kernel.mount(f"/proc/self/fd/{source}", target, None, kernel.MS_BIND | kernel.MS_REC)
    if not stat.S_ISCHR(mode):
        kernel.make_read_only(target)


def map_ids(pid: int | str, *, outside: tuple[int, int], inside: tuple[int, int]) -> None:
    """Say who (user, group) `inside` of process `pid`'s user namespace is outside of it."""
    for name, line in (("setgroups", "deny"), ("uid_map", f"{inside[0]} {outside[0]} 1"), ("gid_map", f"{inside[1]} {outside[1]} 1")):
        file = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def clone_for_program() -> int:
    """Fork into a program's namespaces: the pid to the parent, who must `map_program` it; 0 to the child, who then must `settle`."""
    return kernel.clone(OF_PROGRAM)


def map_program(pid: int) -> None:
    """Make the process `pid` nobody in particular."""
    outside = (OUTSIDE, OUTSIDE) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    map_ids(pid, outside=outside, inside=(INSIDE, INSIDE))


def settle(file_bytes: int) -> None:
    """In the process that was cloned, when it has been mapped: an empty /tmp, no /proc, no privileges."""
    os.setresgid(INSIDE, INSIDE, INSIDE)
    os.setresuid(INSIDE, INSIDE, INSIDE)
    safe = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", safe, f"size={file_bytes},nr_inodes=4096,mode=1777")
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", safe, f"size={file_bytes // 4},nr_inodes=256,mode=1777")
    kernel.mount("tmpfs", "/proc", "tmpfs", safe | kernel.MS_RDONLY, "size=4k,nr_inodes=1,mode=0555")
    os.chdir("/tmp")
    kernel.drop_privileges()

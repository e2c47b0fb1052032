"""What a program may not ask of the kernel, as a filter in the kernel's own bytecode (seccomp-bpf).

Refused calls fail with EPERM, as on any system that does not permit them, so that a program can go on. `strict` is for where a program has
no namespaces of its own: it may then not start processes, write files, open sockets or send signals to others either.

The surprise: clone3 fails with ENOSYS. Its flags lie in memory, which a filter cannot read; libc then falls back to clone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from functools import cache

from benchmarks.code.sandbox import kernel

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000  # x86_64 only: the same calls under other numbers
NAMESPACES = 0x7E020080  # every CLONE_NEW* flag, CLONE_NEWTIME (0x80) too
THREAD = 0x00010000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0) & ~getattr(os, "O_DIRECTORY", 0)

# (x86_64, aarch64); None: the machine has no such call. Numbers: the kernel's unistd.h.
ALWAYS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "process_madvise": (440, 440), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None), "mbind": (237, 235),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "mknod": (133, None), "mknodat": (259, 33),
    # Memory that no limit of a process counts.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180),
}  # fmt: skip
STRICT = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "socket": (41, 198), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "creat": (85, None), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None),
    "symlinkat": (266, 36), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "truncate": (76, None), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setparam": (142, 118),
    "ioprio_set": (251, 30), "openat2": (437, 437),
    # What other processes have made; none is made here.
    "shmat": (30, 196), "shmctl": (31, 195), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187),
}  # fmt: skip
CLONE, CLONE3, KILL, TGKILL, PRLIMIT, OPEN, OPENAT, SOCKET, SOCKETPAIR, FCNTL, IOCTL = (
    (56, 220), (435, 435), (62, 129), (234, 131), (302, 261), (2, None), (257, 56), (41, 198), (53, 199), (72, 25), (16, 29),
)  # fmt: skip
# Who gets a signal when a descriptor is ready: any process of one's user, any signal. F_SETOWN, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP.
FCNTL_OWNER, IOCTL_OWNER = [8, 15], [0x8901, 0x8902]
# A pair of datagram sockets can be sent from to any socket of the system that has an address; one of streams cannot.
STREAMS = [socket.SOCK_STREAM | flags for flags in (0, os.O_CLOEXEC, os.O_NONBLOCK, os.O_CLOEXEC | os.O_NONBLOCK)]

LOAD, JUMP, JUMP_EQ, JUMP_FROM, JUMP_SET, RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06  # FROM: greater or equal
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NR, ARCH = 0, 4  # offsets in struct seccomp_data


def available() -> bool:
    """Whether this machine's call numbers are known here. Whether the kernel takes a filter shows when one is set."""
    return kernel.MACHINE in AUDIT_ARCH


def install(*, strict: bool) -> None:
    """Filter this process and all that it starts, for good. Raises OSError where the kernel does not take it.

    strict: signals may go to this very process only, so call it in the process that is meant.
    """
    code = program(kernel.MACHINE, strict=strict, pid=os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = _Filter(len(code) // 8, ctypes.addressof(buffer))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, filter_)


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


Instructions = list[tuple[int, int, int, int]]  # operation, jump if true, jump if false, operand: struct sock_filter
DENIED = ERRNO | errno.EPERM


def program(machine: str, *, strict: bool, pid: int) -> bytes:
    """The filter's bytecode, 8 bytes an instruction."""
    own: Instructions = []
    if strict:
        for numbers in (KILL, TGKILL, PRLIMIT):  # 0 is oneself for prlimit; for kill the group, which is one of this process alone
            own += _refuse_unless_one_of(numbers[_column(machine)], 0, [0, pid])
    return _common(machine, strict) + _packed([*own, (RETURN, 0, 0, ALLOW)])


@cache
def _common(machine: str, strict: bool) -> bytes:
    """What does not depend on the process: made once for all programs."""
    column = _column(machine)
    code = [(LOAD, 0, 0, ARCH), (JUMP_EQ, 1, 0, AUDIT_ARCH[machine]), (RETURN, 0, 0, KILL_PROCESS), (LOAD, 0, 0, NR)]
    if machine == "x86_64":
        code += [(JUMP_SET, 0, 1, X32_BIT), (RETURN, 0, 0, DENIED)]
    refused = {numbers[column] for numbers in (ALWAYS | STRICT if strict else ALWAYS).values()}
    code += _refuse(sorted(number for number in refused if number is not None))
    code += [(JUMP_EQ, 0, 1, CLONE3[column]), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    code += _refuse_if_set(CLONE[column], 0, NAMESPACES)
    code += _refuse_unless_one_of(SOCKETPAIR[column], 0, [socket.AF_UNIX])
    if strict:
        code += _about(CLONE[column], 0, [(JUMP_SET, 1, 0, THREAD), (RETURN, 0, 0, DENIED)])
        code += _refuse_if_set(OPEN[column], 1, WRITES) + _refuse_if_set(OPENAT[column], 2, WRITES)
        code += _refuse_if_one_of(FCNTL[column], 1, FCNTL_OWNER) + _refuse_if_one_of(IOCTL[column], 1, IOCTL_OWNER)
        code += _refuse_unless_one_of(SOCKETPAIR[column], 1, STREAMS)
    else:  # a network namespace does not hold the other families in, a virtual machine's link to its host (AF_VSOCK) for one
        code += _refuse_unless_one_of(SOCKET[column], 0, [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6])
    return _packed(code)


def _column(machine: str) -> int:
    return list(AUDIT_ARCH).index(machine)


def _packed(code: Instructions) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _refuse(numbers: list[int]) -> Instructions:
    """Refuse the calls with these numbers, found by halves: the kernel goes through a new filter for every call that it knows."""
    if len(numbers) <= 2:
        return [instruction for number in numbers for instruction in ((JUMP_EQ, 0, 1, number), (RETURN, 0, 0, DENIED))]
    middle = len(numbers) // 2
    below, above = _refuse(numbers[:middle]), _refuse(numbers[middle:])
    return [(JUMP_FROM, len(below) + 1, 0, numbers[middle]), *below, (JUMP, 0, 0, len(above)), *above]


def _about(number: int | None, argument: int, tests: Instructions) -> Instructions:
    """`tests` with argument `argument` (its low half) loaded, for this call only; the call's number is loaded again behind them."""
    if number is None:
        return []
    body = [(LOAD, 0, 0, 16 + 8 * argument), *tests, (LOAD, 0, 0, NR)]
    return [(JUMP_EQ, 0, len(body), number), *body]


def _refuse_if_set(number: int | None, argument: int, bits: int) -> Instructions:
    return _about(number, argument, [(JUMP_SET, 0, 1, bits), (RETURN, 0, 0, DENIED)])


def _refuse_unless_one_of(number: int | None, argument: int, values: list[int]) -> Instructions:
    compared = [(JUMP_EQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return _about(number, argument, [*compared, (RETURN, 0, 0, DENIED)])


def _refuse_if_one_of(number: int | None, argument: int, values: list[int]) -> Instructions:
    return _about(number, argument, _refuse(values))

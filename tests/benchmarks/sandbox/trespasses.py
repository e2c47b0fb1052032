"""Programs that reach for what is not theirs, as data: files, the network, other processes, privileges.

The surprise: what they reach for is really there and open to everybody (`suite` puts it there), so that nothing but the sandbox keeps them off.
"""

# ruff: noqa: E501  a program on one line reads better than the same in pieces
from __future__ import annotations

from tests.benchmarks.sandbox.hostile import Hostile

# fmt: off
FILES = [
    Hostile("writes outside", """
for path in (CANARY, HOME, CHECKOUT, CHECKOUT + "/benchmarks/code", os.path.dirname(os.__file__), "/", "/etc", "/root", "/usr/bin", "/var/tmp", "/run", "/sys", "/boot"):
    must_fail(open, path + "/crystal-hostile", "w")
"""),
    Hostile("writes the interpreter", "must_fail(open, os.path.realpath(sys.executable), 'r+b')\nmust_fail(open, os.__file__, 'r+')\nmust_fail(open, '/proc/self/exe', 'r+b')"),
    Hostile("writes the accounts", "for name in ('passwd', 'shadow', 'ld.so.preload', 'crontab'): must_fail(open, '/etc/' + name, 'a')"),
    Hostile("writes the judge", """
for name in ("__init__", "execution", "problems", "score"): must_fail(open, CHECKOUT + f"/benchmarks/code/{name}.py", "r+")
for name in ("judge", "wire", "candidate", "zygote"): must_fail(open, CHECKOUT + f"/benchmarks/code/sandbox/{name}.py", "r+")
"""),
    Hostile("writes through a symbolic link", "os.symlink(CANARY, 'link')\nmust_fail(open, 'link/x', 'w')\nmust_fail(shutil.rmtree, 'link/')"),
    Hostile("leaves links for who tidies up", "os.mkdir('d')\nfor i in range(9): os.symlink(CANARY, f'd/{i}')\nos.symlink(CANARY, 'link')\nos.chmod('d', 0)"),
    Hostile("leaves folders that nobody can list", """
for i in range(50): os.makedirs(f"x{i}/" + "y/" * 40)
os.chmod("x0", 0)
os.chmod(".", 0)
"""),
    Hostile("hard links", "must_fail(os.link, '/etc/passwd', 'x')\nmust_fail(os.link, CANARY + '/secret', 'y')"),
    Hostile("deletes everything", """
isolated()
for path in ("/etc/passwd", HOME, CHECKOUT): assert not os.path.exists(path) or not os.access(path, os.W_OK), Escaped(path)
shutil.rmtree("/", ignore_errors=True)
""", ("failed", "contained", "timeout")),
    Hostile("renames and removes", "must_fail(os.rename, CANARY + '/secret', CANARY + '/x')\nmust_fail(os.unlink, CANARY + '/secret')\nmust_fail(os.rename, CANARY, 'x')\nmust_fail(os.truncate, CANARY + '/secret', 0)"),
    Hostile("changes modes and owners", "for path in (CANARY, '/etc/passwd', '/usr/bin/env'):\n    must_fail(os.chmod, path, 0o777)\n    must_fail(os.chown, path, 1234, 1234)\n    must_fail(os.utime, path, (0, 0))\n    must_fail(os.setxattr, path, 'user.x', b'1')"),
    Hostile("reads a secret", "for path in (CANARY + '/secret', '/etc/shadow', '/proc/1/environ', '/proc/1/maps'): must_fail(open, path)\nmust_fail(os.listdir, CANARY)"),
    Hostile("shared memory of other processes", """
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(SHARED, None, 0)
if at not in (None, 2**64 - 1): raise Escaped(ctypes.memset(at, 1, 64))
"""),
    Hostile("memory of other processes", """
me = {str(os.getpid()), "self", "thread-self"}
for pid in filter(str.isdecimal, os.listdir("/proc")):
    if pid not in me:
        for name in ("mem", "oom_score_adj", "comm"): must_fail(open, f"/proc/{pid}/{name}", "r+b")
        must_fail(open, f"/proc/{pid}/environ")
        must_fail(os.listdir, f"/proc/{pid}/fd")
"""),
    Hostile("kernel settings", """
for name, text in (("sys/kernel/core_pattern", "|/bin/true"), ("sysrq-trigger", "h"), ("sys/vm/drop_caches", "1"), ("sys/kernel/hostname", "x")):
    must_fail(open, "/proc/" + name, "r+")
"""),
    Hostile("leaves its control group", """
for folder, _, files in os.walk("/sys/fs/cgroup"):
    for name in {"tasks", "cgroup.procs", "memory.limit_in_bytes", "memory.max", "pids.max"} & {*files}: must_fail(open, f"{folder}/{name}", "r+")
"""),
    Hostile("devices", """
for name in ("mem", "kmsg", "sda", "vda", "nvme0n1", "kvm", "fuse", "net/tun", "loop-control"): must_fail(open, f"/dev/{name}", "r+b", 0)
must_fail(os.mknod, "x", 0o60600, os.makedev(254, 0))
must_fail(os.mknod, "y", 0o20600, os.makedev(1, 1))
"""),
    Hostile("another root", "must_fail(os.chroot, '.')\nmust_fail(call, 'pivot_root', b'.', b'.')"),
    Hostile("through a descriptor that was left open", """
for number in range(3, 1024):
    try: os.fchdir(number)
    except OSError: continue
    must_fail(open, "crystal-hostile", "w")
    os.chdir("../../../../..")
    must_fail(open, CANARY.lstrip("/") + "/x", "w")
"""),
    Hostile("one big file", "with open('x', 'wb') as file:\n    for _ in range(2048): file.write(bytes(1 << 20))\nraise Escaped('2 GB')", reason="Errno 27|Errno 28|SIGXFSZ|"),
    Hostile("a sparse file", "with open('x', 'wb') as file: file.truncate(1 << 40)\nraise Escaped('1 TB')"),
    Hostile("a preallocated file", "os.posix_fallocate(os.open('x', os.O_RDWR | os.O_CREAT), 0, 2 << 30)\nraise Escaped('2 GB')"),
    Hostile("fills the disk with files", """
for i in range(400):
    with open(f"x{i}", "wb") as file: file.write(bytes(10 << 20))
raise Escaped("4 GB")
""", ("failed", "contained", "timeout")),
    Hostile("fills /dev/shm and /tmp", """
for folder in ("/dev/shm", "/tmp", "/var/tmp", "/dev"):
    try:
        for i in range(200):
            with open(f"{folder}/crystal-hostile-{i}", "wb") as file: file.write(bytes(10 << 20))
    except OSError: continue
    raise Escaped(folder)
""", ("failed", "contained", "timeout")),
    Hostile("many empty files", "for i in range(300_000): os.close(os.open(f'x{i}', os.O_CREAT))\nraise Escaped('300,000 files')", ("failed", "contained", "timeout")),
    Hostile("modules for the next program", """
text = "import os\\nos._exit(0)\\n"
for name in ("sitecustomize", "usercustomize", "json", "random", "string", "program", "math"):
    for folder in (".", "/tmp"):
        try:
            with open(f"{folder}/{name}.py", "w") as file: file.write(text)
        except OSError: pass
os.makedirs("benchmarks/code/sandbox")
"""),
]

NETWORK = [
    Hostile("TCP", "must_fail(socket.create_connection, ('127.0.0.1', TCP), 1)\nmust_fail(socket.create_connection, ('localhost', TCP), 1)"),
    Hostile("UDP", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))"),
    Hostile("abstract socket", "must_fail(socket.socket(socket.AF_UNIX).connect, ABSTRACT)"),
    Hostile("socket in a file", "must_fail(socket.socket(socket.AF_UNIX).connect, CANARY + '/socket')"),
    Hostile("system sockets", "for path in ('/run/docker.sock', '/var/run/docker.sock', '/run/dbus/system_bus_socket', '/run/systemd/private'): must_fail(socket.socket(socket.AF_UNIX).connect, path)"),
    Hostile("HTTP", "import urllib.request\nmust_fail(urllib.request.urlopen, f'http://127.0.0.1:{TCP}/', None, 1)"),
    Hostile("names", "must_fail(socket.getaddrinfo, 'example.org', 80)"),
    Hostile("datagrams from a pair", """
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
    try: one = socket.socketpair(socket.AF_UNIX, kind)[0]
    except OSError: continue
    for send in (lambda: one.sendto(b"x", DATAGRAMS), lambda: one.sendmsg([b"x"], [], 0, DATAGRAMS), lambda: one.connect(DATAGRAMS) or one.send(b"x")):
        try: send()
        except OSError: pass
"""),
    Hostile("netlink", "made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\nmust_fail(open, '/proc/sys/net/ipv4/ip_forward', 'r+')\nmust_fail(socket.if_nametoindex, 'eth0')"),
    Hostile("raw packets", "must_fail(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)\nmust_fail(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)"),
    Hostile("machine sockets", "must_fail(socket.socket(40, socket.SOCK_STREAM).connect, (2, TCP))"),
    Hostile("a child that waits", """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.3)
        socket.create_connection(("127.0.0.1", TCP), 1)
    os._exit(0)
"""),
    Hostile("a shell", "subprocess.run(['bash', '-c', f'echo x > /dev/tcp/127.0.0.1/{TCP}'])\nsubprocess.run(['bash', '-c', f'echo x > /dev/udp/127.0.0.1/{UDP}'])"),
]

SIGNALS = [
    Hostile("kills its parent", "isolated()\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(0.05)"),
    Hostile("kills process 1", "isolated()\nos.kill(1, signal.SIGKILL)\ntime.sleep(0.05)"),
    Hostile("kills everybody", "isolated()\nos.kill(-1, signal.SIGKILL)"),
    Hostile("kills its group", "isolated()\nos.killpg(0, signal.SIGKILL)"),
    Hostile("kills by number", """
isolated()
for pid in range(2, 70000):
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
"""),
    Hostile("stops everybody", "isolated()\nos.kill(-1, signal.SIGSTOP)"),
    Hostile("stops its parent", "isolated()\nos.kill(os.getppid(), signal.SIGSTOP)\nos.kill(1, signal.SIGSTOP)"),
    Hostile("asks others to leave", "isolated()\nfor number in (1, 2, 3, 15, 10, 12, 24): \n    for pid in (1, os.getppid()): \n        try: os.kill(pid, number)\n        except OSError: pass"),
    Hostile("a signal by a descriptor", """
import fcntl
end, other = socket.socketpair()
for pid in (BYSTANDER, os.getppid(), 1):
    try: fcntl.fcntl(end, fcntl.F_SETOWN, pid)
    except OSError: continue
    fcntl.fcntl(end, 10, signal.SIGKILL)
    fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)
    other.send(b"x")
time.sleep(0.02)
"""),
    Hostile("joins its parent's group", "isolated()\nos.setpgid(0, os.getpgid(os.getppid()))\nos.killpg(0, signal.SIGKILL)"),
    Hostile("takes a bystander by descriptor", "must_fail(os.pidfd_open, BYSTANDER)"),
    Hostile("takes the limits of its parent", "import resource\nmust_fail(resource.prlimit, BYSTANDER, resource.RLIMIT_NOFILE, (1, 1))"),
    Hostile("lowers others' priority", "must_fail(os.setpriority, os.PRIO_PROCESS, BYSTANDER, 19)\nmust_fail(os.sched_setaffinity, BYSTANDER, [0])"),
    Hostile("raises its priority", "must_fail(os.setpriority, os.PRIO_PROCESS, 0, -20)\nmust_fail(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))"),
]

PRIVILEGES = [
    Hostile("becomes root", "if os.getuid(): must_fail(os.setuid, 0)\nmust_fail(os.setresuid, 0, 0, 0) if os.getuid() else None\nmust_fail(os.setgroups, [0])"),
    Hostile("is not root", "if LAYER != 'seccomp' and 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()): raise Escaped('root')"),
    Hostile("has no capabilities", """
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
call("capget", header, sets)
if any(sets): raise Escaped(f"capabilities {list(sets)}")
if ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) != 1: raise Escaped("new privileges")
"""),
    Hostile("runs set-user-id programs", "for path in ('/bin/su', '/usr/bin/passwd', '/usr/bin/newgrp'): subprocess.run([path, '-c', 'id'], stdin=subprocess.DEVNULL)"),
    Hostile("namespaces of its own", "for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000): must_fail(call, 'unshare', flag)\nmust_fail(call, 'unshare', 0x10020000)"),
    Hostile("mounts", "must_fail(call, 'mount', b'x', b'/tmp', b'tmpfs', 0, None)\nmust_fail(call, 'mount', None, b'/', None, 32 | 4096, None)\nmust_fail(call, 'umount2', b'/tmp', 2)"),
    Hostile("traces its parent", "must_fail(call, 'ptrace', 16, os.getppid(), 0, 0)\nmust_fail(call, 'ptrace', 0x4206, 1, 0, 0)\nmust_fail(call, 'ptrace', 0x4206, BYSTANDER, 0, 0)"),
    Hostile("reads its parent's memory", """
into = ctypes.create_string_buffer(8)
class Part(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
for pid in {1, os.getppid(), BYSTANDER} - {os.getpid()}:
    must_fail(call, "process_vm_readv", pid, ctypes.byref(Part(ctypes.addressof(into), 8)), 1, ctypes.byref(Part(id(0), 8)), 1, 0)
    must_fail(call, "process_vm_writev", pid, ctypes.byref(Part(ctypes.addressof(into), 8)), 1, ctypes.byref(Part(id(0), 8)), 1, 0)
"""),
    Hostile("keys", "must_fail(syscall, 250 if os.uname().machine == 'x86_64' else 219, 0, -3, 1)"),
    Hostile("bpf", "must_fail(syscall, 321 if os.uname().machine == 'x86_64' else 280, 0, ctypes.create_string_buffer(128), 128)"),
    Hostile("io_uring", "must_fail(syscall, 425, 8, ctypes.create_string_buffer(256))"),
    Hostile("performance counters", """
counter = ctypes.create_string_buffer(b"\\x01\\0\\0\\0\\x80\\0\\0\\0", 128)
must_fail(syscall, 298 if os.uname().machine == "x86_64" else 241, counter, 0, -1, -1, 0)
"""),
    Hostile("userfaultfd", "must_fail(syscall, 323 if os.uname().machine == 'x86_64' else 282, 1)"),
    Hostile("handles", "must_fail(syscall, 304 if os.uname().machine == 'x86_64' else 265, -100, ctypes.create_string_buffer(32), 0)"),
    Hostile("the machine itself", """
must_fail(call, "sethostname", b"hostile", 7)
must_fail(time.clock_settime, time.CLOCK_REALTIME, time.time())
must_fail(call, "reboot", 0)
must_fail(call, "swapon", b"/dev/null", 0)
must_fail(call, "acct", b"/dev/null")
must_fail(syscall, 175 if os.uname().machine == "x86_64" else 105, ctypes.create_string_buffer(8), 8, b"")
"""),
]
# fmt: on

GROUPS = {"files": FILES, "network": NETWORK, "signals": SIGNALS, "privileges": PRIVILEGES}

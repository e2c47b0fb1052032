"""Programs that do nothing wrong and must pass, whatever runs beside them, as data: (name, program, check).

The surprise: where a program has no namespaces of its own it may not write files or start processes, so there PRIVILEGED fails.
"""

# ruff: noqa: E501  a program on one line reads better than the same in pieces
from __future__ import annotations

CHECK = "assert answer(6, 7) == 42"

# fmt: off
PLAIN = [
    ("plain", "def answer(a, b): return a * b", CHECK),
    ("threads", "import threading\ndef answer(a, b):\n    found = []\n    threads = [threading.Thread(target=found.append, args=(i,)) for i in range(8)]\n    [t.start() for t in threads], [t.join() for t in threads]\n    return sum(found) + 14", CHECK),
    ("a pool of threads", "from concurrent.futures import ThreadPoolExecutor\ndef answer(a, b):\n    with ThreadPoolExecutor(4) as pool: return sum(pool.map(int, [a] * b))", CHECK),
    ("recursion to 900", "def depth(n): return 0 if n == 0 else 1 + depth(n - 1)\ndef answer(a, b): return depth(900) - 858", CHECK),
    ("200 MB", "def answer(a, b): return len(bytes(b'x') * (200 << 20)) // 4993271 + (0 if a else 1)", "assert answer(6, 7) == (200 << 20) // 4993271"),
    ("prints a lot", "def answer(a, b):\n    for _ in range(50): print('x' * 100_000)\n    return a * b", CHECK),
    ("writes to stderr", "import sys, warnings\nwarnings.warn('x')\nsys.stderr.write('x' * 10**6)\ndef answer(a, b): return a * b", CHECK),
    ("dataclasses", "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n    x: 'int'\n    y: list = field(default_factory=list)\ndef answer(a, b): return P(a).x * P(b).x", CHECK),
    ("a class that is asked about", "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)",
     "s = Stack()\ns.push(1)\ns.push([2])\nassert len(s) == 2 and s.pop() == [2] and s.items == [1]"),
    ("generators", "def answer(n):\n    for i in range(n): yield i * i", "assert list(answer(4)) == [0, 1, 4, 9] and next(answer(2)) == 0"),
    ("changes its argument", "def answer(xs): xs.sort(); xs.append(9)", "xs = [3, 1]\nassert answer(xs) is None and xs == [1, 3, 9]"),
    ("an expected exception", "def answer(x):\n    if x < 0: raise ValueError('negative')\n    return x", "try: answer(-1)\nexcept ValueError as e: assert str(e) == 'negative'\nelse: assert False"),
    ("an exception that it catches", "def answer(a, b):\n    try: return {}[a]\n    except KeyError: return a * b", CHECK),
    ("sets, tuples, dicts", "def answer(xs): return {x: (x, {x}) for x in xs}", "assert answer([1, 2]) == {1: (1, {1}), 2: (2, {2})}"),
    ("floats", "import math\ndef answer(x): return math.sqrt(x)", "import math\nassert abs(answer(2.0) - 2 ** 0.5) < 1e-12 and math.isinf(answer(math.inf))"),
    ("large numbers", "import math\ndef answer(n): return math.factorial(n)", "import math\nassert answer(500) == math.factorial(500)"),
    ("text of all kinds", "def answer(x): return x[::-1]", "assert answer('h\\u00e9\\U0001f600\\ud800') == '\\ud800\\U0001f600\\u00e9h'"),
    ("asyncio", "import asyncio\nasync def work(a, b):\n    await asyncio.sleep(0.01)\n    return a * b\ndef answer(a, b): return asyncio.run(work(a, b))", CHECK),
    ("decorators and caches", "import functools\n@functools.lru_cache(None)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\ndef answer(a, b): return fib(a + b) - 191", CHECK),
    ("random with a seed", "import random\nrandom.seed(1)\ndef answer(a, b): return a * b if random.random() < 1 else 0", CHECK),
    ("sleeps a little", "import time\ndef answer(a, b):\n    time.sleep(0.1)\n    return a * b", CHECK),
    ("a name of a builtin", "def sum(a, b): return a * b", "assert sum(6, 7) == 42"),
    ("a socket to itself", "import socket\ndef answer(a, b):\n    one, two = socket.socketpair()\n    one.sendall(bytes([a * b]))\n    return two.recv(1)[0]", CHECK),
    ("no environment", "import os, sys\ndef answer(): return [len(os.environ), sys.argv, [path for path in sys.path if 'site-packages' in path], __name__ == '__main__']", "assert answer() == [0, [''], [], False]"),
    ("reads the standard library", "import os\ndef answer(): return os.path.isfile(os.__file__) and 'def ' in open(os.__file__).read()", "assert answer() is True"),
]

PRIVILEGED = [
    ("temporary files", "import os, tempfile\ndef answer(a, b):\n    with tempfile.TemporaryFile() as file: file.write(bytes(a * b))\n    with open('x', 'w') as file: file.write('x' * a * b)\n    return os.path.getsize('x')", CHECK),
    ("a subprocess", "import subprocess, sys\ndef answer(a, b): return int(subprocess.run([sys.executable, '-S', '-c', f'print({a} * {b})'], capture_output=True, text=True).stdout)", CHECK),
    ("a fork", "import os\ndef answer(a, b):\n    pid = os.fork()\n    if pid == 0: os._exit(a * b)\n    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])", CHECK),
]
# fmt: on

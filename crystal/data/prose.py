"""Prose from Python packages, for `harvest`: docstrings by kind, package descriptions, the language reference.

The surprise: the kinds are told apart by crude marks (a `>>>`, a LaTeX command); they only give each of SlimPajama's
seven sources some text of a like shape, and are honest about it in STAND_INS.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator

STAND_INS = {
    "RedPajamaCommonCrawl": "descriptions, readme and documentation files of installed packages",
    "RedPajamaC4": "prose docstrings of classes and functions, one document a module",
    "RedPajamaGithub": "type stubs, headers and configuration files that are not in starcoderdata",
    "RedPajamaBook": "the Python language reference, one document a topic",
    "RedPajamaArXiv": "docstrings with mathematics, one document a module",
    "RedPajamaWikipedia": "module docstrings",
    "RedPajamaStackExchange": "docstrings with examples, as question and answer, one thread a module",
}
MATHEMATICS = re.compile(r":math:|\.\. math::|\\frac|\\sum|\\int|\\mathbb|\$\$")
BADGES = re.compile(r"^\s*\[?!\[.*\n?", re.M)
SENTENCE_END = re.compile(r"(?<=[.?!])\s")
LOOK_CHARACTERS = 4000
MIN_CHARACTERS = 200
MIN_LETTERS = 0.6  # share of ASCII letters and spaces
MIN_TOPIC = 1000


def docstrings(text: str, name: str) -> Iterator[tuple[str, str]]:
    """(source, document) of one Python file: at most one of each of four kinds; nothing if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    about = ast.get_docstring(tree)
    if about and is_prose(about):
        yield "RedPajamaWikipedia", f"{_module(name)}\n\n{about}"
    kinds: dict[str, list[str]] = {"RedPajamaArXiv": [], "RedPajamaStackExchange": [], "RedPajamaC4": []}
    for title, doc in _definitions(tree):
        if MATHEMATICS.search(doc):
            kinds["RedPajamaArXiv"].append(f"{title}\n\n{doc}")
        elif ">>> " in doc:
            kinds["RedPajamaStackExchange"].append(_thread(title, doc))
        elif is_prose(doc):
            kinds["RedPajamaC4"].append(f"{title}\n\n{doc}")
    for source, pieces in kinds.items():
        if sum(map(len, pieces)) >= MIN_CHARACTERS:
            yield source, "\n\n".join(pieces)


def _definitions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, docstring) of every class and function at the top level, and of the classes' methods."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if doc := ast.get_docstring(node):
            yield node.name, doc
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and (doc := ast.get_docstring(inner)):
                yield f"{node.name}.{inner.name}", doc


def _thread(title: str, doc: str) -> str:
    """RedPajama's form of a thread; the question is made of the docstring's first sentence."""
    first = SENTENCE_END.split(inspect.cleandoc(doc), maxsplit=1)[0].strip()
    return f"Q: How does {title} work? {first}\n\nA: {doc}"


def _module(name: str) -> str:
    path = name.partition("/")[2].removesuffix(".py").removesuffix("/__init__")
    return path.replace("/", ".")


def without_headers(metadata: str) -> str:
    """The long description in a package's METADATA, which follows the first empty line; lines of badges left out."""
    return BADGES.sub("", metadata.partition("\n\n")[2]).strip()


def is_prose(text: str) -> bool:
    """Long enough, and mostly ASCII letters and spaces."""
    if len(text) < MIN_CHARACTERS:
        return False
    head = text[:LOOK_CHARACTERS]
    return sum(c.isascii() and (c.isalpha() or c == " ") for c in head) >= MIN_LETTERS * len(head)


def language_reference() -> Iterator[str]:
    """The topics of `help()`, longest ones whole; none where this Python does not ship them."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        return
    for name in sorted(topics):
        if len(topics[name]) >= MIN_TOPIC:
            yield topics[name].strip()

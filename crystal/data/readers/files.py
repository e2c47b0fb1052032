"""The files of a corpus, on this machine or wherever fsspec reaches: listed once with their sizes, and opened.

The surprises: folders behind symbolic links are walked, since a corpus may lie on several disks; and a name that begins with a dot is
no file of a corpus, since what fetches one leaves notes in such folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from crystal.config import UserError, require
from crystal.data.optional import need
from crystal.data.readers.document import Broken

MEND_PATH = "give data.root=DIR or the reader's path"


@dataclass(frozen=True, slots=True)
class Files:
    """The files below `path`, a folder or fsspec's URL of one, whose relative names match `pattern`: a glob, or several with | between
    them, in which `**` is any number of folders.
    """

    path: str
    pattern: str

    def sizes(self) -> dict[str, int]:
        """Bytes by relative name, in the natural order of names; UserError where there are none."""
        system, root = self._system()
        try:
            # Two walks: fsspec's own does not enter linked folders; of a store in a network it is a few requests.
            found = _walked(root) if _is_local(system) else _listed(system, root)
            is_folder = bool(found) or system.isdir(root)
        except Exception as error:  # whatever the store's own package raises where it refuses or cannot be reached
            raise UserError(
                f"{self.path} cannot be listed ({one_line(error)}); expected {self._expected()}; check its name and your rights"
            ) from error
        require(is_folder, f"{self.path} is not a folder", self._expected(), MEND_PATH)
        sizes = {name: size for name, size in found.items() if not re.search(r"(^|/)\.", name) and self._has(name)}
        require(bool(sizes), f"{self.path} holds no files {self.pattern}", "at least one", MEND_PATH)
        return {name: sizes[name] for name in sorted(sizes, key=_natural)}

    @contextmanager
    def opened(self, file: str) -> Iterator[IO[bytes]]:
        """`file` for reading; UserError where it cannot be opened, or reading it fails. That is not damage: another try may succeed."""
        system, root = self._system()
        try:
            with system.open(f"{root}/{file}", "rb") as handle:
                yield handle
        except OSError as error:
            raise UserError(
                f"{self.name(file)} cannot be read ({one_line(error)}); expected a file; check your rights and its disk or network"
            ) from error

    def name(self, file: str) -> str:
        """The file as the user would name it."""
        return f"{self.path.rstrip('/')}/{file}"

    def broken(self, file: str, where: str, what: str, remedy: str) -> Broken:
        """`remedy`: what was expected and what to do."""
        return Broken(file, where, f"{self.name(file)} {what}; {remedy}")

    def _has(self, name: str) -> bool:
        return any(matches(name.split("/"), pattern.split("/")) for pattern in self.pattern.split("|"))

    def _expected(self) -> str:
        return self.name(self.pattern)

    def _system(self) -> tuple[Any, str]:
        """fsspec's file system and the path in it; found anew each time, as one of a network may not go through a fork."""
        try:
            system, root = need("fsspec.core").url_to_fs(self.path)
        except ImportError as error:
            raise UserError(
                f"{self.path} needs a package that is not installed ({one_line(error)}); expected {self._expected()}; install it"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{self.path} cannot be understood ({one_line(error)}); expected a folder, or a URL of one such as s3://bucket/folder; "
                f"{MEND_PATH}"
            ) from error
        return system, root.rstrip("/")


def matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a glob, in which `**` is any number of folders."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(matches(names[k:], patterns[1:]) for k in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and matches(names[1:], patterns[1:])


def one_line(error: Exception) -> str:
    """What an error of another package says, in one line."""
    return " ".join(str(error).split())


def _is_local(system: Any) -> bool:
    return isinstance(system, need("fsspec.implementations.local").LocalFileSystem)


def _listed(system: Any, root: str) -> dict[str, int]:
    found = system.find(root, detail=True)
    return {name[len(root) + 1 :]: info["size"] for name, info in found.items() if name.startswith(f"{root}/")}


def _walked(root: str) -> dict[str, int]:
    sizes = {}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        here = Path(os.path.realpath(folder))
        subfolders[:] = [name for name in subfolders if not here.is_relative_to(os.path.realpath(os.path.join(folder, name)))]  # no circles
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isfile(path):
                sizes[path[len(root) + 1 :]] = os.path.getsize(path)
    return sizes


def _natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """A sort key under which file_9 comes before file_10; the name itself decides between file_1 and file_01."""
    pieces = re.split(r"([0-9]+)", name)
    return [(0, int(piece)) if k % 2 else (1, piece) for k, piece in enumerate(pieces) if piece], name

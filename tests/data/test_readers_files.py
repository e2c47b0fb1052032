"""Where the files of a corpus lie: folders, links, stores; and what of them is an error."""

from __future__ import annotations

import errno
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileOpener
from fsspec.registry import known_implementations
from hypothesis import given
from hypothesis import strategies as st

from crystal.config import UserError
from crystal.data.readers import JsonLines, SlimPajama, StarCoder, TextFolder
from crystal.data.readers.files import matches
from tests.data.conftest import write_parquet
from tests.data.test_readers import GOOD, compress, read_all, read_any, slimpajama


def test_no_folder_and_no_files(tmp_path):
    (tmp_path / "file").touch()
    for reader in (SlimPajama, StarCoder, JsonLines):
        for path in (tmp_path / "none", tmp_path / "file", "memory://nowhere"):
            with pytest.raises(UserError, match=rf"^{path} is not a folder; expected {path}/.*\*"):
                reader(str(path)).files()
        with pytest.raises(UserError, match="holds no files"):
            reader(str(tmp_path)).identity()


def test_files_of_unknown_endings(tmp_path):
    for name in ("a.jsonl.bz2", "a.jsonl~"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=rf"{name} has an unknown ending; expected names that end in .jsonl"):
            JsonLines(str(tmp_path)).identity()
        (tmp_path / name).unlink()


def test_urls(tmp_path):
    with pytest.raises(UserError, match="nope://a cannot be understood .Protocol not known: nope.; expected a folder, or a URL"):
        SlimPajama("nope://a").files()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(known_implementations, "far", {"class": "no_such_package.FileSystem", "err": "Install far"})
        with pytest.raises(UserError, match="far://a needs a package that is not installed .Install far."):
            SlimPajama("far://a").files()
    slimpajama(tmp_path, compress(GOOD))
    for path in (f"file://{tmp_path}", f"{tmp_path}/"):
        assert len(read_all(SlimPajama(path))) == 1


def test_a_store_that_refuses(tmp_path, monkeypatch):
    class NoCredentialsError(Exception):
        """As of boto: nothing that fsspec or Python knows."""

    def refuse(*args: Any, **options: Any) -> None:
        raise NoCredentialsError("Unable to locate\ncredentials")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "find", refuse)
    with pytest.raises(UserError, match="memory://corpus cannot be listed .Unable to locate credentials."):
        StarCoder("memory://corpus").files()


def test_everything_reads_from_a_store_as_from_a_disk(tmp_path):
    slimpajama(tmp_path / "..", b"")  # a neighbour, which is not of the corpus
    slimpajama(tmp_path, compress(f"{GOOD}\n{GOOD}"))
    write_parquet(tmp_path / "python" / "b.parquet", ["x"] * 120)
    store, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    store.put(str(tmp_path), f"/{tmp_path.name}", recursive=True)
    store.pipe(f"/{tmp_path.name}-other/python/c.parquet", b"of a folder whose name only begins the same")
    for reader in (SlimPajama, StarCoder):
        assert read_all(reader(url)) == read_all(reader(str(tmp_path)))
        assert reader(url).identity() | {"path": ""} == reader(str(tmp_path)).identity() | {"path": ""}


def test_linked_folders_are_entered_once(tmp_path):
    elsewhere = tmp_path / "disk2"
    slimpajama_dir = tmp_path / "corpus"
    elsewhere.mkdir(), slimpajama_dir.mkdir()
    (elsewhere / "a_2.jsonl.zst").write_bytes(compress(GOOD))
    (elsewhere / "back").symlink_to(elsewhere)
    (slimpajama_dir / "chunk1").symlink_to(elsewhere)
    (slimpajama_dir / "chunk1" / "b_3.jsonl.zst").symlink_to(elsewhere / "a_2.jsonl.zst")
    sizes = SlimPajama(str(slimpajama_dir)).identity()["files"]
    assert sizes == dict.fromkeys(["chunk1/a_2.jsonl.zst", "chunk1/b_3.jsonl.zst"], len(compress(GOOD)))
    assert TextFolder(str(slimpajama_dir), "t").files() == list(sizes)


def test_a_file_that_cannot_be_read_is_an_error_not_damage(tmp_path):
    reader = slimpajama(tmp_path, compress(GOOD))
    (tmp_path / "chunk1" / "example_train_3.jsonl.zst").unlink()
    with pytest.raises(UserError, match="example_train_3.jsonl.zst cannot be read"):
        list(reader.read("chunk1/example_train_3.jsonl.zst"))


def test_a_disk_that_fails_is_no_damage_of_a_file(tmp_path, monkeypatch):
    slimpajama(tmp_path, compress(GOOD))
    write_parquet(tmp_path / "python" / "b.parquet", ["x"] * 120)

    def fail(*args: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(LocalFileOpener, "read", fail, raising=False)
    for reader in (SlimPajama(str(tmp_path)), StarCoder(str(tmp_path))):
        with pytest.raises(UserError, match=r"(zst|parquet) cannot be read \(.*Input/output error"):
            read_any(reader)


NAMES = st.lists(st.sampled_from(["a", "b", "ab", "a.txt"]), min_size=1, max_size=4)


@given(NAMES, st.lists(st.sampled_from(["a", "*", "**", "?", "*.txt", "[ab]"]), min_size=1, max_size=4))
def test_matches_as_pathlib_does(tmp_path_factory, names, patterns):
    if patterns[-1] == "**":
        patterns.append("*")  # pathlib's last ** means folders only
    root = tmp_path_factory.mktemp("tree")
    file = root.joinpath(*names)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    assert matches(names, patterns) == (file in root.glob("/".join(patterns)))

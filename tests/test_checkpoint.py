from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

from crystal import checkpoint
from crystal.checkpoint import fingerprint, latest, read_state, save, write_tensors
from crystal.config import UserError


class FakeEngine:
    """As much of an engine as a checkpoint needs: a step and something to write."""

    def __init__(self, step_count: int, numel: int = 100) -> None:
        self.step_count, self.numel = step_count, numel

    def save(self, folder: Path) -> None:
        write_tensors(folder / "weights.pt", torch.full((self.numel,), float(self.step_count)))
        write_tensors(folder / "optimizer.pt", {})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    return tmp_path / "checkpoints"


def save_at(root: Path, step: int, *, keep: int = 2, **engine) -> Path:
    return save(root, FakeEngine(step, **engine), {"seed": 7}, tokenizer=root.parent / "tokenizer.json", keep=keep)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_is_in_one(root):
    folder = save_at(root, 12)
    assert folder == latest(root) == root / "step-00000012"
    assert names(folder) == ["COMPLETE", "optimizer.pt", "state.json", "tokenizer.json", "weights.pt"]
    assert read_state(folder) == {"seed": 7, "step": 12}
    assert torch.load(folder / "weights.pt", weights_only=True).unique().item() == 12


def test_the_newest_are_kept(root):
    for step in (5, 20, 100, 99_999_999):
        save_at(root, step)
    assert names(root) == ["step-00000100", "step-99999999"]
    save_at(root, 100_000_000 - 1, keep=1)
    assert names(root) == ["step-99999999"]


def test_no_checkpoints(root):
    assert latest(root) is None


WRITES = [(os, "rename"), (os, "fsync"), (shutil, "copyfile"), (Path, "write_text"), (FakeEngine, "save"), (checkpoint, "write_tensors")]


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyboardInterrupt])
def test_whole_or_nothing_whichever_write_fails(root, monkeypatch, error):
    before = save_at(root, 1)
    for n in range(100):  # the n-th of all the writes raises, until none is left to raise
        calls = []

        def failing(write, n=n, calls=calls):
            def wrapper(*args, **options):
                calls.append(write)
                if len(calls) == n + 1:
                    raise error("at a bad moment")
                return write(*args, **options)

            return wrapper

        with monkeypatch.context() as patch:
            for owner, name in WRITES:
                patch.setattr(owner, name, failing(getattr(owner, name)))
            try:
                save_at(root, 2)
            except error:
                assert names(root)[0] == before.name, "the old one stays until the new one is on the disk"
                assert [read_state(root / name)["step"] for name in names(root)] in ([1], [1, 2])
                shutil.rmtree(root / "step-00000002", ignore_errors=True)
            else:
                break
    assert n >= 9, "every kind of write took its turn"
    assert read_state(latest(root))["step"] == 2


def test_everything_is_on_the_disk_before_it_gets_its_name(root, monkeypatch):
    synced, rename, fsync = set(), os.rename, os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(source: Path, target: Path) -> None:
        assert all(path.stat().st_ino in synced for path in source.iterdir())
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", check)
    save_at(root, 3)
    assert synced


@pytest.mark.parametrize("room", [0, 1000, 200_000])
def test_a_full_disk_is_said_as_such_and_leaves_nothing(root, room):
    """A real limit on file sizes: torch must not turn it into an error without a reason."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save_at(root, 1, numel=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(root) == []
    save_at(root, 1, numel=100_000)


def test_what_a_kill_left_is_no_checkpoint_and_goes_with_the_next(root):
    save_at(root, 1)
    (root / ".step-00000002.tmp").mkdir()
    (root / ".step-00000002.tmp" / "weights.pt").write_bytes(b"half")
    assert latest(root).name == "step-00000001"
    save_at(root, 3)
    assert names(root) == ["step-00000001", "step-00000003"]


@pytest.mark.parametrize("name", ["weights.pt", "optimizer.pt", "state.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "missing"])
def test_a_damaged_file_is_refused_by_name(root, name, damage):
    folder = save_at(root, 4)
    path, content = folder / name, (folder / name).read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    changed = {"flip": content[:middle] + flipped + content[middle + 1 :], "cut": content[:-1], "grow": content + b"\n"}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    with pytest.raises(UserError, match=f"{name}.*; expected .*; the file is damaged"):
        read_state(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"weights.pt": {'])
def test_a_damaged_list_is_refused(root, content):
    folder = save_at(root, 4)
    (folder / "COMPLETE").write_bytes(content)
    with pytest.raises(UserError, match="step-00000004 is not a whole checkpoint"):
        read_state(folder)


def test_what_is_no_checkpoint_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="no checkpoint folder"):
        read_state(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no file COMPLETE"):
        read_state(tmp_path)


def test_the_list_covers_every_file(root):
    folder = save_at(root, 4)
    assert sorted(json.loads((folder / "COMPLETE").read_text())) == [name for name in names(folder) if name != "COMPLETE"]


@pytest.mark.parametrize("name", ["weights.pt", checkpoint.MDL])
def test_the_fingerprint_is_that_of_the_file_of_the_weights(tmp_path, name):
    def sealed(weights, optimizer):
        folder = tmp_path / f"{weights}-{optimizer}"
        folder.mkdir()
        (folder / name).write_text(weights)
        (folder / "optimizer.pt").write_text(optimizer)
        (tmp_path / "tokenizer.json").write_text("{}")
        checkpoint.seal(folder, {}, tokenizer=tmp_path / "tokenizer.json")
        return folder

    folder = sealed("123456789", "a")
    assert fingerprint(folder) == "crc32:cbf43926"  # the check value that CRC-32's catalogues give
    assert fingerprint(sealed("123456789", "b")) == fingerprint(folder) != fingerprint(sealed("12345678", "a"))


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"weights.pt": {}}', '{"weights.pt": {"crc32": "x"}}'])
def test_without_a_sound_list_there_is_no_fingerprint(root, content):
    folder = save_at(root, 1)
    (folder / "COMPLETE").unlink() if content is None else (folder / "COMPLETE").write_text(content)
    with pytest.raises(UserError, match="step-00000001 is not a whole checkpoint"):
        fingerprint(folder)

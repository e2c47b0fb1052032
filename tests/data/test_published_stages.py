"""The three published stages from the sample of the real formats: weights, halves, and every document once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import crystal.__main__  # noqa: F401 (it stores the schema, which composing needs)
from crystal.config import Config
from crystal.data.encode import is_held_out
from crystal.data.loader import resolve_entries
from crystal.data.mixture import Mixture, Stream
from crystal.data.prepare import Settings, prepare
from crystal.data.readers import Document, Reader, SlimPajama, StarCoder
from crystal.data.shards import Prepared
from crystal.data.tree import WHOLE, Tree
from stages.recipes import recipe
from tests.shared import LLAMA, SHARED_DATA, needs_sample

pytestmark = needs_sample
HOLDOUT = 0.003


@pytest.fixture(scope="module")
def readers() -> list[Reader]:
    return [SlimPajama(str(SHARED_DATA / "slimpajama" / "train")), StarCoder(str(SHARED_DATA / "starcoderdata"))]


@pytest.fixture(scope="module")
def prepared(readers: list[Reader], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    settings = Settings(2048, 32032, holdout=HOLDOUT, valid_rows=32)
    out = tmp_path_factory.mktemp("published") / "out"
    return prepare(readers, out, settings, tokenizer=LLAMA, label="sample", progress=lambda line: None)


@pytest.fixture(scope="module")
def config() -> Config:
    with initialize_config_module("conf", version_base="1.3"):
        made = OmegaConf.to_object(compose("config", ["model=7b", "data=crystalcoder", "data.root=."]))
    assert isinstance(made, Config)
    return made


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_every_prefix_has_the_published_weights_within_a_row(prepared: Prepared, config: Config, stage: str) -> None:
    made = recipe(config.stages[stage], config.scale)
    entries, empty = resolve_entries(made.entries, prepared)
    assert not empty and made.tokens == config.stages[stage].tokens
    total = sum(entry.weight for entry in made.entries)
    mixture = Mixture([Stream(e.name, len(prepared.rows(e.parts, e.slice)), e.weight) for e in entries], seed=config.run.seed)
    weights = np.array([entry.weight / total for entry in made.entries])
    assert np.abs(np.array(Tree(weights.tolist()).parts) / WHOLE - weights).max() < 1e-9
    n = 100_000
    streams, _, _ = mixture.locate(np.arange(n, dtype=np.int64))
    for k, weight in enumerate(weights):
        counts = np.cumsum(streams == k)
        assert np.abs(counts - weight * np.arange(1, n + 1)).max() <= 1, entries[k].name


def documents(readers: list[Reader]) -> Iterator[tuple[int, Document, str]]:
    """(number of the file, document, its train part) of all that are trained on."""
    number = 0
    for reader in readers:
        for file in reader.files():
            for document in reader.read(file):
                assert isinstance(document, Document)
                if document.text and not is_held_out(document, HOLDOUT):
                    yield number, document, reader.part(document)
            number += 1


def test_halves_are_disjoint_and_complete(prepared: Prepared, readers: list[Reader]) -> None:
    expected: dict[str, set[tuple[int, int]]] = {}
    for number, document, part in documents(readers):
        expected.setdefault(part, set()).add((number, document.index))
        if part.endswith(("/even", "/odd")):
            assert part.endswith("/odd" if int(document.file.split("_")[-1].split(".")[0]) % 2 else "/even")
    halves = [part for part in expected if part.endswith(("/even", "/odd"))]
    assert len(halves) == 14 and set(expected) == set(prepared.train)
    for part, places in expected.items():
        index = prepared.pieces(part)
        pieces, _ = index[np.arange(len(prepared.rows(part)))]
        found = {(int(piece["file"]), int(piece["place"])) for piece in pieces}
        assert found <= places
        last = max(found)  # at the end of a part of text, what does not fill a row is dropped, less than one
        assert all(place > last for place in places - found)
        assert prepared.train[part]["dropped_tokens"] <= (0 if prepared.train[part]["fim_room"] else 2048)

"""Checkpoints of small models, and transformers made ready to load what becomes of them.

The surprise: mup asks for torchvision, whose CUDA build comes beside a CPU torch and does not load there; transformers would try it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from crystal import checkpoint
from crystal.config import ModelConfig
from crystal.model.transformer import Transformer
from tests.conftest import VOCAB_SIZE
from tests.small import random_model, small_config

try:
    importlib.import_module("torchvision")
except (ImportError, RuntimeError):
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # as if it were not installed

Saved = Callable[..., tuple[Path, ModelConfig, Transformer]]


@pytest.fixture(autouse=True, scope="session")
def hf_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The code of exports goes to a folder of the session; nothing asks the network."""
    folder = str(tmp_path_factory.mktemp("hf-modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_MODULES_CACHE", folder)  # transformers reads it when it is imported, which may be over
        patch.setattr(importlib.import_module("transformers.dynamic_module_utils"), "HF_MODULES_CACHE", folder)
        yield


@pytest.fixture
def tokenizer_file(corpus: Path) -> Path:
    return corpus / "tokenizer" / "tokenizer.json"


@pytest.fixture
def saved(tmp_path: Path, tokenizer_file: Path) -> Saved:
    """`saved(d_model=64)` writes the checkpoint of such a model, every parameter of it random, and returns it with config and model."""

    def save(**changes) -> tuple[Path, ModelConfig, Transformer]:
        config = small_config(**({"vocab_size": VOCAB_SIZE} | changes))
        return tmp_path / "checkpoint", config, write_random(tmp_path / "checkpoint", config, tokenizer_file)

    return save


def write_random(folder: Path, config: ModelConfig, tokenizer: Path) -> Transformer:
    """Write the checkpoint of a random model and return the model."""
    model = random_model(config).eval()
    with checkpoint.whole(folder) as temporary:
        checkpoint.write_tensors(temporary / "weights.pt", model.state_dict())
        checkpoint.seal(temporary, {"step": 3, "model": asdict(config)}, tokenizer=tokenizer)
    return model

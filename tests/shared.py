"""Where the files lie that the repository does not hold: CRYSTAL_SHARED_DATA, or shared/data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("CRYSTAL_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
PARITY = SHARED_DATA / "parity"
LLAMA = SHARED_DATA / "tokenizer" / "tokenizer.json"
needs_sample = pytest.mark.skipif(not LLAMA.is_file(), reason="no sample of the real data: set CRYSTAL_SHARED_DATA to its folder")
needs_golden = pytest.mark.skipif(not PARITY.is_dir(), reason="no golden vectors: CRYSTAL_SHARED_DATA names no folder that has parity/")
SDK_PYTHON = Path(os.environ.get("CRYSTAL_CEREBRAS_PYTHON", Path(__file__).parents[1] / ".venv-cerebras" / "bin" / "python"))

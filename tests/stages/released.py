"""Where CrystalCoder's three released params.yaml files are, if they are on this machine."""

from __future__ import annotations

import pytest

from tests.shared import SHARED_DATA

PHASES = SHARED_DATA.parent / "notes" / "crystalcoder_params"
needs_released = pytest.mark.skipif(not PHASES.is_dir(), reason=f"no notes/{PHASES.name} beside CRYSTAL_SHARED_DATA")

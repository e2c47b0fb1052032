"""Imports what only data preparation or one file format needs, so that training on prepared data runs without it."""

from __future__ import annotations

import importlib
from typing import Any

from crystal.config import UserError


def need(module: str, *, extra: str = "data") -> Any:
    """The module of that name; UserError naming the extra that brings it when its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"the package {package} is not installed or does not load ({error}); this data needs it; "
            f"run: pip install 'crystal-trainer[{extra}]'"
        ) from error

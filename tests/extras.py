"""Packages that an installation may lack: a test that needs one is skipped, or fails under GSQ_REQUIRE_EXTRAS (CI)."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def extra(name: str) -> Any:
    """The package ``name``; skips the test or the module where it is missing."""
    if os.environ.get("GSQ_REQUIRE_EXTRAS"):
        return importlib.import_module(name)
    return pytest.importorskip(name)

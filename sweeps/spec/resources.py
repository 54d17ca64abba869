"""Names and functions that a cluster file's resource expressions may use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from gsq.config.overrides import SHORT_NAMES
from gsq.sweeps.spec.expressions import DERIVED_NAMES

# The estimates are rounded up so that cells share a class; axes and derived axes are exact.
ESTIMATED_NAMES = ("seconds", "minutes", "memory_gb", "parameters", "train_flops", "flops_per_step")
RESOURCE_NAMES = tuple(dict.fromkeys((*ESTIMATED_NAMES, "images", *SHORT_NAMES, *DERIVED_NAMES)))
RESOURCE_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max, "ceil": math.ceil}

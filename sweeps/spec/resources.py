"""Names and functions in the resource expressions of a cluster file."""

from __future__ import annotations

import math

from gsq.config.overrides import SHORT_NAMES
from gsq.sweeps.spec.expressions import DERIVED_NAMES

# Names in a resource expression: the estimate and arithmetic, rounded up so that cells share a class; then the exact
# axes and derived axes of the results table.
ESTIMATED_NAMES = ("seconds", "minutes", "memory_gb", "parameters", "train_flops")
RESOURCE_NAMES = tuple(dict.fromkeys((*ESTIMATED_NAMES, "images", *SHORT_NAMES, *DERIVED_NAMES)))
RESOURCE_FUNCTIONS = {"min": min, "max": max, "ceil": math.ceil}

"""Random numbers for the tests of metrics."""

from __future__ import annotations

import numpy as np


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)

"""How a law is fitted: the options of a fit, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.solver import LOSSES, STARTS, Loss, Residuals

Intervals = Literal["profile", "bootstrap", "none"]


@dataclass(frozen=True)
class Options:
    """How a law is fitted; the defaults are those of :func:`fit`."""

    residuals: Residuals = "log"
    loss: Loss = "least_squares"
    delta: float | None = None
    weights: str | None = None
    noise: float | None = None
    bootstrap: int = 1000
    starts: int = STARTS
    bootstrap_starts: int = 8
    seed: int = 0
    confidence: float = 0.95
    intervals: Intervals | None = None

    def __post_init__(self) -> None:
        if self.residuals not in ("log", "linear"):
            raise AnalysisError(f"residuals must be 'log' or 'linear', got {self.residuals!r}")
        if self.loss not in LOSSES:
            raise AnalysisError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.delta is not None and not 0 < self.delta < np.inf:
            raise AnalysisError(f"delta must be a positive number of residual units, got {self.delta}")
        if self.delta is not None and self.loss == "least_squares":
            raise AnalysisError("delta belongs to the losses huber and cauchy; least_squares has none")
        if self.bootstrap < 0:
            raise AnalysisError(f"bootstrap is a number of resamples, 0 for none; got {self.bootstrap}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer) or self.seed < 0:
            raise AnalysisError(f"seed must be a whole number, 0 or more; got {self.seed!r}")
        if self.starts < 1 or self.bootstrap_starts < 1:
            raise AnalysisError(f"starts must be at least 1, got {min(self.starts, self.bootstrap_starts)}")
        if not 0 < self.confidence < 1:
            raise AnalysisError(
                f"confidence must lie between 0 and 1, got {self.confidence}; 0.95 gives 95 % intervals"
            )
        if self.noise is not None and not 0 < self.noise < np.inf:
            raise AnalysisError(f"noise is the standard deviation of a seed, above 0; got {self.noise}")
        if self.intervals not in (None, "profile", "bootstrap", "none"):
            raise AnalysisError(f"intervals must be 'profile', 'bootstrap' or 'none', got {self.intervals!r}")
        if self.intervals == "profile" and self.loss != "least_squares":
            raise AnalysisError(f"profile intervals need least_squares; with {self.loss} take intervals='bootstrap'")

    @property
    def kind(self) -> Intervals:
        """The intervals that are shown: profile likelihood for least squares, else bootstrap."""
        return self.intervals or ("profile" if self.loss == "least_squares" else "bootstrap")

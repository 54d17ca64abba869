"""The options of a fit, declared once for :func:`gsq.analysis.fit` and for the command line. Imports no numpy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args

from gsq.analysis.errors import AnalysisError

Residuals = Literal["log", "linear"]
Loss = Literal["least_squares", "huber", "cauchy", "quantile", "asymmetric"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
SIDED: tuple[Loss, ...] = ("quantile", "asymmetric")
"""Losses that weigh targets above the law differently from those below it."""
Intervals = Literal["profile", "bootstrap", "none"]
T = TypeVar("T")


def changed(options: T, changes: Mapping[str, Any]) -> T:
    """Return ``options`` with some fields changed. Raises AnalysisError for a name that is not a field."""
    known = [one.name for one in fields(options)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise AnalysisError(f"there is no option {name!r}{hint}; the options are {', '.join(known)}")
    return replace(options, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a fit.

    Options:
        --residuals KIND  log weighs relative errors (rFID spans decades), linear absolute ones, as the paper does.
        --loss LOSS  least_squares, huber, cauchy, quantile or asymmetric.
        --delta X  Residual beyond which huber, cauchy and quantile are no longer quadratic. Default: 1e-3 for huber and
            quantile (times the median target in linear residuals), as replications of Chinchilla use; for cauchy 2.385
            robust standard deviations of the least-squares residuals.
        --weights COLUMN  A column of positive weights, for instance one over a variance.
        --noise SD  Standard deviation between seeds, if known (relative for log residuals), for the lack-of-fit test;
            otherwise gsq estimates it from the seeds in the table.
        --bootstrap N  Resamples, by configuration, of the bootstrap intervals; 0 for none.
        --starts N  Random starts of the fit.
        --bootstrap-starts N  Starts of each resample; a table of more than 500 rows uses fewer.
        --seed N  Seed of the starts and of the resamples; the same seed gives the same result.
        --confidence P  Confidence of the intervals, between 0 and 1.
        --intervals KIND  Intervals to show: profile (default for least_squares), bootstrap, or none, which is fast.
        --quantile SHARE  Share of runs below the law, for the loss quantile; asymmetric uses it for squares
            (expectiles). Default: 0.1, because undertuned runs lie above the law alone.
    """

    residuals: Residuals = "log"
    loss: Loss = "least_squares"
    delta: float | None = None
    weights: str | None = None
    noise: float | None = None
    bootstrap: int = field(default=1000, metadata={"min": 0})
    starts: int = field(default=64, metadata={"min": 1})
    bootstrap_starts: int = field(default=8, metadata={"min": 1})
    seed: int = field(default=0, metadata={"min": 0})
    confidence: float = 0.95
    intervals: Intervals | None = None
    quantile: float | None = None

    def __post_init__(self) -> None:
        for name in ("bootstrap", "starts", "bootstrap_starts"):
            if isinstance(one := getattr(self, name), bool) or not isinstance(one, Integral):
                raise AnalysisError(f"{name} must be a whole number, got {one!r}")
        for name in ("confidence", "delta", "noise", "quantile"):
            one = getattr(self, name)
            if one is not None and not isinstance(one, Real):
                raise AnalysisError(f"{name} must be a number, got {one!r}")
        if self.residuals not in get_args(Residuals):
            raise AnalysisError(f"residuals must be 'log' or 'linear', got {self.residuals!r}")
        if self.loss not in LOSSES:
            raise AnalysisError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.delta is not None and not 0 < self.delta < math.inf:
            raise AnalysisError(f"delta must be a positive number of residual units, got {self.delta}")
        if self.delta is not None and self.loss in ("least_squares", "asymmetric"):
            raise AnalysisError(f"delta belongs to the losses huber, cauchy and quantile; {self.loss} has none")
        if self.quantile is not None and self.loss not in SIDED:
            raise AnalysisError(f"quantile belongs to the losses {' and '.join(SIDED)}; {self.loss} has none")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise AnalysisError(
                f"quantile is the share of runs that lie below the law, between 0 and 1; got {self.quantile}"
            )
        if self.bootstrap < 0:
            raise AnalysisError(f"bootstrap is a number of resamples, 0 for none; got {self.bootstrap}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or self.seed < 0:
            raise AnalysisError(f"seed must be a whole number, 0 or more; got {self.seed!r}")
        if self.starts < 1 or self.bootstrap_starts < 1:
            raise AnalysisError(f"starts must be at least 1, got {min(self.starts, self.bootstrap_starts)}")
        if not 0 < self.confidence < 1:
            raise AnalysisError(
                f"confidence must lie between 0 and 1, got {self.confidence}; 0.95 gives 95 % intervals"
            )
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise AnalysisError(f"noise is the standard deviation of a seed, above 0; got {self.noise}")
        if self.intervals not in (None, *get_args(Intervals)):
            raise AnalysisError(f"intervals must be 'profile', 'bootstrap' or 'none', got {self.intervals!r}")
        if self.intervals == "profile" and self.loss != "least_squares":
            raise AnalysisError(f"profile intervals need least_squares; with {self.loss} use intervals='bootstrap'")

    @property
    def share(self) -> float:
        """Return the ``quantile`` of the sided losses. The default, 0.1, gives the law of well-tuned runs."""
        return 0.1 if self.quantile is None else self.quantile

    @property
    def kind(self) -> Intervals:
        """The intervals that are shown: profile likelihood for least squares, else bootstrap."""
        return self.intervals or ("profile" if self.loss == "least_squares" else "bootstrap")

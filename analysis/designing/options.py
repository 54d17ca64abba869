"""The options of a design, declared once for :func:`gsq.analysis.design` and for the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from gsq.analysis.errors import AnalysisError

Criterion = Literal["widest", "average"]
CRITERIA: tuple[Criterion, ...] = ("widest", "average")


@dataclass(frozen=True, kw_only=True)
class DesignOptions:
    """Options of a design: how it chooses the runs.

    Options:
        --until VALUE  Stop at this value of the target: half an interval (0.1 of a parameter; 0.05 is 5 % of a
            prediction or of the noise), or the weight of wrong laws.
        --noise SD  Standard deviation between seeds (relative, unless residuals are linear). By default the seeds in
            the table give it; without any, further seeds count for nothing.
        --seeds N  Largest number of runs of a configuration, including measured ones; 1 for no further seeds. If the
            candidates have more rows of a configuration, that number counts.
        --cost COLUMN  Column of the candidates with the cost of a run, above 0 and in any unit.
        --criterion KIND  With predictions at several cells, narrow the widest interval or their average (root mean
            square, V- or I-optimal). The average includes the disagreement between rival laws and optima.
        --cost-exponent X  A run is worth its gain over cost^X: 1 is gain for cost. Below 1, gsq chooses fewer and more
            expensive runs, which suits predictions far beyond the measured cells (0.5).
        --optima N  Count up to N local minima of each law's fit as rivals, weighted by fit. Few cells often leave
            several minima.
        --enough SHARE  Leave out the last runs if together they narrow the target by less than this share (0.05). By
            default the whole budget is spent.
        --unit  Unit of the costs in what is printed; by default the column's name.
    """

    until: float | None = None
    noise: float | None = None
    seeds: int = field(default=3, metadata={"min": 1})
    cost: str | None = None
    criterion: Criterion = "widest"
    cost_exponent: float = 1.0
    optima: int = field(default=1, metadata={"min": 1})
    enough: float | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        if self.until is not None and not 0 < self.until < math.inf:
            raise AnalysisError(f"until must be a number above 0, got {self.until:g}")
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise AnalysisError(f"noise is the standard deviation between seeds, above 0; got {self.noise:g}")
        if self.seeds < 1:
            raise AnalysisError(f"seeds, the most runs of a configuration, must be at least 1; got {self.seeds}")
        if self.criterion not in CRITERIA:
            raise AnalysisError(f"criterion must be {' or '.join(CRITERIA)}, got {self.criterion!r}")
        if not 0 <= self.cost_exponent < math.inf:
            raise AnalysisError(
                f"cost_exponent must be 0 or more (1: gain for cost; 0: whatever it costs), got {self.cost_exponent:g}"
            )
        if self.optima < 1:
            raise AnalysisError(f"optima, the local minima that count as rivals, must be at least 1; got {self.optima}")
        if self.enough is not None and not 0 < self.enough < 1:
            raise AnalysisError(f"enough is a share between 0 and 1 (0.05: 5 %); got {self.enough:g}")

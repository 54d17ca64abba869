"""The options of a design, declared once for :func:`gsq.analysis.design` and for the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gsq.analysis.errors import AnalysisError


@dataclass(frozen=True, kw_only=True)
class DesignOptions:
    """How the runs of a design are chosen."""

    until: float | None = field(
        default=None,
        metadata={
            "metavar": "VALUE",
            "help": "Stop at this value of the target: half an interval (0.1 of a parameter; 0.05 is 5 % of a "
            "prediction or of the noise), or the weight of wrong laws.",
        },
    )
    noise: float | None = field(
        default=None,
        metadata={
            "metavar": "SD",
            "help": "Standard deviation between seeds (relative, unless residuals are linear). By default the seeds in "
            "the table give it; without any, a further seed tells nothing of the law.",
        },
    )
    seeds: int = field(
        default=3,
        metadata={
            "metavar": "N",
            "min": 1,
            "help": "Most runs of a configuration, measured ones included; 1 for no further seeds. Candidates with "
            "more rows of a configuration allow as many.",
        },
    )
    cost: str | None = field(
        default=None,
        metadata={
            "metavar": "COLUMN",
            "help": "Column of the candidates that says what a run costs, in any unit above 0.",
        },
    )
    unit: str | None = field(
        default=None, metadata={"help": "Unit of the costs in what is printed; by default the column's name."}
    )

    def __post_init__(self) -> None:
        if self.until is not None and not 0 < self.until < math.inf:
            raise AnalysisError(f"until must be a number above 0, got {self.until:g}")
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise AnalysisError(f"noise is the standard deviation between seeds, above 0; got {self.noise:g}")
        if self.seeds < 1:
            raise AnalysisError(f"seeds, the runs of a configuration at the most, must be at least 1; got {self.seeds}")

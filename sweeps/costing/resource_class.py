"""What a job requests; cells of similar cost share a class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from gsq.errors import UserError
from gsq.sweeps.costing.cost import MEMORY_MARGIN, TIME_MARGIN, Estimate
from gsq.sweeps.planning.cells import Cell, axis_columns
from gsq.sweeps.spec.expressions import Expression
from gsq.sweeps.spec.resources import RESOURCE_FUNCTIONS, RESOURCE_NAMES


@dataclass(frozen=True, order=True)
class ResourceClass:
    """A request of a job. Cells are rounded up to few classes, each of which is one job array."""

    memory_gb: int
    minutes: int
    cells_in_turn: int = 1
    """Cells that each place of a job trains one after the other."""


MEMORY_STEPS_GB = (2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1024)
MINUTE_STEPS = (15, 30, 60, 120, 240, 480, 720, 1440, 2880, 5760, 10080)


def resource_class(
    wanted: Estimate, *, minutes: int | str = 0, memory_gb: int | str = 0, cell: Cell | None = None
) -> ResourceClass:
    """Return the smallest class that holds an estimate with its margins, or the largest class if none does.

    minutes, memory_gb: fixed by the cluster file, 0 for the estimate; or a ResourceExpression over the cell and its
    estimate, to which no margin is added. Raises UserError for an expression that is wrong or needs the cell.
    """

    def requested(key: str, fixed: int | str, steps: tuple[int, ...], least: float) -> int:
        value = ResourceExpression(key, fixed).value(wanted, cell) if isinstance(fixed, str) else fixed
        return value or next((step for step in steps if step >= least), steps[-1])

    return ResourceClass(
        requested("memory_gb", memory_gb, MEMORY_STEPS_GB, wanted.memory_bytes * MEMORY_MARGIN / 2**30),
        requested("minutes", minutes, MINUTE_STEPS, wanted.seconds * TIME_MARGIN / 60),
    )


@dataclass(frozen=True)
class ResourceExpression:
    """A request as an expression of the cell: ``max(30, 3 * minutes)`` for minutes.

    It is checked when it is made, and evaluated by simpleeval, never by eval. Names are RESOURCE_NAMES; ``seconds``,
    ``minutes`` and ``memory_gb`` are the estimate without margin. These, ``parameters`` and the FLOPs are rounded
    up to a power of the square root of 2, so that cells share few classes.
    """

    key: str
    """minutes or memory_gb, for error messages."""
    text: str

    def __post_init__(self) -> None:
        _ = self.expression

    @cached_property
    def expression(self) -> Expression:
        return Expression(self.text, self.key, RESOURCE_NAMES, RESOURCE_FUNCTIONS)

    def value(self, wanted: Estimate, cell: Cell | None) -> int:
        """Return the value, rounded up to a whole number of at least 1. Raises UserError if that is not possible."""
        values = {"seconds": wanted.seconds, "minutes": wanted.seconds / 60, "memory_gb": wanted.memory_bytes / 2**30}
        if cell is not None:
            flops = cell.cost.train_flops
            values |= {"parameters": cell.cost.parameters, "train_flops": flops}
            values |= {"flops_per_step": flops / cell.config.train.steps}
        values = {name: _rounded_up(value) for name, value in values.items()}
        if cell is not None:
            values |= {"images": cell.cost.images, **axis_columns(cell.config, cell.data_label)}
        if unknown := sorted(self.expression.used - set(values)):
            raise UserError(f"{self.key}: '{self.text}': {', '.join(unknown)} is not known without a cell")
        try:
            found = self.expression.value(values.__getitem__)
        except UserError as error:
            raise UserError(f"{error}{f' (cell {cell.title})' if cell else ''}") from None
        where = f"{self.key}: '{self.text}'{f' for cell {cell.title}' if cell else ''}"
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise UserError(f"{where}: is {found!r}, not a number")
        if not 0 < found < 1e9:
            raise UserError(f"{where}: is {found:g}, not a positive number below 1e9")
        return math.ceil(found)


def _rounded_up(value: float) -> float:
    return 2.0 ** (math.ceil(2 * math.log2(value) - 1e-9) / 2) if value > 0 else 0.0

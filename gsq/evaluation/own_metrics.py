"""Metrics of a user's own (evaluation.metrics): a value for each image, whose mean is a column of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsq.config.parts import load
from gsq.errors import UserError


@dataclass(frozen=True)
class OwnMetric:
    """A metric by its import path."""

    name: str
    column: str
    """Column of the results table: the attribute ``column`` of what the part returns, or the part's name."""
    function: Callable[[Tensor, Tensor], Any]

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        """Both (B, 3, H, W) float32 in [-1, 1], rounded as uint8 images are -> (B,).

        Raises UserError for another shape, or a value that is not finite.
        """
        found = self.function(images, originals)
        if not isinstance(found, Tensor) or found.shape != (len(images),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"evaluation.metrics: '{self.name}' returned {shape} for {len(images)} images; it must be a tensor "
                f"({len(images)},), one value an image"
            )
        if not math.isfinite(float(found.double().sum())):
            raise UserError(f"evaluation.metrics: '{self.name}' returned a value that is not finite")
        return found


def own_metrics(names: Sequence[str], device: torch.device) -> tuple[OwnMetric, ...]:
    """The metrics that evaluation.metrics names, on the device.

    Raises UserError where one cannot be imported, or two fill the same column.
    """
    made: list[OwnMetric] = []
    for name in names:
        function = load(name, "evaluation.metrics")()
        if not callable(function):
            raise UserError(
                f"evaluation.metrics: '{name}' returned a {type(function).__name__}; it must be a callable "
                "(images, originals) -> (B,)"
            )
        if isinstance(function, torch.nn.Module):
            function.eval().requires_grad_(False).to(device)
        made.append(OwnMetric(name, column_of(name, function), function))
    columns = [metric.column for metric in made]
    if twice := next((one for one in columns if columns.count(one) > 1), None):
        raise UserError(f"evaluation.metrics: two of them fill the column '{twice}'; give one an attribute `column`")
    return tuple(made)


def column_of(name: str, function: object) -> str:
    column = getattr(function, "column", None) or name.partition(":")[2].lower()
    if not isinstance(column, str) or not column.isidentifier():
        raise UserError(f"evaluation.metrics: '{name}' names its column {column!r}; a name such as my_metric is needed")
    return column

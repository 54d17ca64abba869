"""ProgramConfig: a run of a training program of a user's own, ``package.module:train``, with free keys.

It stands wherever a RunConfig does. The sections of a RunConfig are there without a meaning, but for ``train.steps``,
which is the key or column ``steps``. Imports no torch; a program's own module may.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from gsq.config.objective import DiscriminatorConfig, LossConfig
from gsq.config.parts import Options
from gsq.config.run import RunConfig
from gsq.config.schedule import TrainConfig
from gsq.errors import UserError, nearest


@dataclass(frozen=True)
class ProgramConfig(RunConfig):
    """What a run of a user's own program is."""

    loss: LossConfig = field(default_factory=lambda: LossConfig(perceptual="none"))
    discriminator: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig(kind="none"))
    program: str = ""
    """Its import path, package.module:train."""
    keys: Options = field(default_factory=Options)
    """Free keys, which the program is called with: numbers, texts, booleans, null or lists of these."""
    columns: Options = field(default_factory=Options)
    """Values of the columns that the sweep derives from the keys by formula."""
    units: Options = field(default_factory=Options)
    """Units of keys, columns and metrics, for the results table."""
    flops: float = 0.0
    """Training FLOPs of the whole run, as the sweep declares them; 0 if it does not."""
    seconds: float = 0.0
    """Device seconds of the whole run, as the sweep declares them; 0 if it does not."""

    @classmethod
    def of(cls, program: str, keys: Mapping[str, Any], **more: Any) -> Self:
        """A config whose ``train.steps`` is the key or column ``steps``, or 1 without."""
        columns, units = Options(more.pop("columns", {})), Options(more.pop("units", {}))
        steps = {**columns, **keys}.get("steps")
        whole = steps if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else 1
        train = TrainConfig(steps=whole, batch_size=1)
        return cls(train=train, program=program, keys=Options(keys), columns=columns, units=units, **more)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls.of(**{name: values[name] for name in _PLAIN if name in values})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, tuples as lists (what config.yaml holds)."""
        found = {name: getattr(self, name) for name in _PLAIN}
        return {name: plain(value) if isinstance(value, Options) else value for name, value in found.items()}

    @property
    def values(self) -> dict[str, Any]:
        """Keys and derived columns by name."""
        return {**self.keys, **self.columns}

    def value(self, name: str, where: str) -> Any:
        """A key or column. Raises UserError, naming the nearest, if there is none of this name."""
        if name not in self.values:
            raise UserError(
                f"{where}: '{name}' is not a key of {self.program}{nearest(name, self.values)}; keys and columns are "
                f"{', '.join(self.values)}"
            )
        return self.values[name]

    def science(self, seed: int | None = None) -> tuple[Any, ...]:
        """What runs of the same science share; seed: in place of the key ``seed``."""
        keys = self.keys if seed is None or "seed" not in self.keys else Options(self.keys, seed=seed)
        return self.program, keys


_PLAIN = ("program", "keys", "columns", "units", "flops", "seconds")


def plain(values: Options) -> dict[str, Any]:
    """Free keys as plain values, tuples as lists: what a program is called with."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def column_value(value: Any) -> Any:
    """A key as the results table holds it: lists of numbers as such, other lists as JSON."""
    if not isinstance(value, tuple):
        return value
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
    return [float(one) for one in value] if numbers else json.dumps(list(value))

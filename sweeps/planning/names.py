"""What each name in an expression of a sweep file is at one cell: axes, derived keys, config keys, costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gsq.config.axes import DERIVED, derive
from gsq.config.flops import Cost, cost
from gsq.config.overrides import SHORT_NAMES, Overrides
from gsq.config.parts import option_value
from gsq.config.program import ProgramConfig
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.sweeps.spec.derive import Derivation, behind_cost
from gsq.sweeps.spec.expressions import COST_NAMES

# Most turns until the number of steps and the mean cost of a step agree.
TURNS = 60


def value_of(config: RunConfig, key: str) -> Any:
    """Return the value of ``section.key`` in a config, of a part's option ``section.options.key``, or of a program's
    key."""
    if isinstance(config, ProgramConfig):
        return config.values.get(key)
    section, name = key.split(".", 1)
    if name.startswith("options."):
        return option_value(config, key)
    return getattr(getattr(config, section), name)


class CellNames:
    """Value of each name: the cell's own, else by its formula, else the base config's, else what follows from these."""

    def __init__(
        self,
        override: Overrides,
        axes: Mapping[str, Any],
        derivations: Mapping[str, Derivation],
        recorded: tuple[str, ...],
    ) -> None:
        """derivations: by config key; an axis goes before them. recorded: axes that are no config keys."""
        self.override, self.derivations, self.recorded = override, derivations, recorded
        self.axes = {name: value for name, value in axes.items() if name in recorded}
        self.keys = {SHORT_NAMES.get(name, name): value for name, value in axes.items() if name not in recorded}
        self._found: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        if name in self.recorded:
            if name not in self.axes:
                raise UserError(f"this cell has no value of '{name}'")
            return self.axes[name]
        if name in DERIVED:
            # Derive from bare numbers, because a cell that the constraint drops may not be a valid config.
            return derive(name, self)
        if name in COST_NAMES:
            return self._cost(name)
        return self.key("quantizer.levels") or None if name == "levels" else self.key(SHORT_NAMES.get(name, name))

    def key(self, key: str) -> Any:
        """Return the value of a config key."""
        if (given := self.keys.get(key)) is not None:
            return given
        if key in self.derivations:
            return self.derived(self.derivations[key])
        return value_of(self.override.base, key)

    def derived(self, one: Derivation) -> Any:
        """Return the value of a key by its formula, rounded. Raises UserError."""
        if one.key not in self._found:
            self._found[one.key] = self._iterated(one) if one.iterated else one.rounded(one.expression.value(self))
        return self._found[one.key]

    def _iterated(self, one: Derivation) -> int:
        """Steps by the mean cost of a step, in which a discriminator that starts late counts for its part."""
        steps = int(value_of(self.override.base, one.key))
        for _ in range(TURNS):
            steps, last = self._turned(one, steps), steps
            if abs(steps - last) <= 1:
                return steps
        # A discriminator that costs more than the rest makes the turns jump to and fro over what they look for.
        low, high = sorted((steps, last))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._turned(one, middle) >= middle else (low, middle)
        if abs((given := self._turned(one, low)) - low) > max(2, 0.05 * low):
            raise UserError(f"{one.expression.where}: '{one.text}' has no solution near {low}, which gives {given}")
        return low

    def _turned(self, one: Derivation, steps: int) -> int:
        """The steps by the cost of a step in a run of so many steps."""
        names = CellNames(self.override, {**self.axes, **self.keys, one.key: steps}, self.derivations, self.recorded)
        try:
            return int(one.rounded(one.expression.value(names)))
        except UserError as error:
            raise UserError(f"{error} (derive: {one.text} is {steps!r})") from None

    def _cost(self, name: str) -> float:
        if name == "images":
            return self("steps") * self("batch_size")
        behind = behind_cost(name, self.derivations)
        config = self.override({**self.keys, **{key: self.key(key) for key in behind}})
        found: Cost = cost(config)
        return found.train_flops / config.train.steps if name == "flops_per_step" else getattr(found, name)

"""``derive:`` in a sweep YAML: config keys by formula, from other keys, from axes that are no keys, and from costs.

derive:
  learning_rate: "2e-4 * (batch_size / 256)^0.5 * (16 / width)^0.5"
  loss.discriminator_start: "steps / 2"
  steps: "flops_budget / flops_per_step"       # with an axis flops_budget: an isoFLOP grid

``flops_per_step`` is the mean over the run, so that the cost of the run is the budget, also where the discriminator
starts late.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from gsq.config.axes import DERIVED, modifiers, roots
from gsq.config.overrides import KEYS, SHORT_NAMES, config_key
from gsq.config.values import checked, key_types
from gsq.errors import UserError
from gsq.sweeps.schema.columns import BY_NAME
from gsq.sweeps.spec.expressions import COST_NAMES, DERIVED_NAMES, FUNCTIONS, Expression

STEPS, START = "train.steps", "loss.discriminator_start"
_MODEL = ("model.", "quantizer.", "data.image_size")
_LOSS = ("loss.perceptual", "loss.lecam_update", "loss.options.", START)
_RUN = (*_MODEL, "discriminator.", *_LOSS, "train.batch_size", STEPS)
# The config keys, or sections, that each cost follows from.
_COST_KEYS = {
    "parameters": _MODEL,
    "images": (STEPS, "train.batch_size"),
    "train_flops": _RUN,
    "flops_per_step": _RUN,
}
DIGITS = 6
"""Significant digits of a derived number that is not whole: which the powers of all machines agree in."""


@dataclass(frozen=True)
class Derivation:
    """One key, and its formula."""

    name: str
    """The key as the YAML spells it."""
    key: str
    expression: Expression

    @property
    def text(self) -> str:
        return f"{self.name} = {self.expression.text}"

    @property
    def iterated(self) -> bool:
        """Whether this is the number of steps by the mean FLOPs of a step, which follow from that number."""
        return self.key == STEPS and "flops_per_step" in self.expression.used

    @property
    def rounding(self) -> str:
        """What the values are rounded to, in words; empty for text and the like."""
        kind = key_types().get(self.key, (str, None))
        wanted = kind[1] or kind[0]
        return {int: "a whole number", float: f"{DIGITS} digits"}.get(wanted, "")

    def needs(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` that its value follows from."""
        found: set[str] = set()
        for name in self.expression.used:
            if name in COST_NAMES:
                found |= set(behind_cost(name, keys)) - ({STEPS, START} if self.iterated else set())
            elif name in DERIVED:
                axes = {*roots(name), *modifiers(name)}
                found |= {key for key in keys if key in {SHORT_NAMES.get(a, "quantizer.levels") for a in axes}}
            else:
                found |= {SHORT_NAMES.get(name, name)} & set(keys)
        return found

    def rounded(self, value: Any) -> Any:
        """``value`` as the key takes it. Raises UserError for one of another type."""
        if self.key not in key_types():
            return value
        wanted, entry = key_types()[self.key]
        if isinstance(value, list | tuple) and entry is not None:
            fitting = [_fitting(one, entry) for one in value]
        else:
            fitting = _fitting(value, wanted)
        found = checked(self.key, fitting, f"derive: {self.name}: '{self.expression.text}' gives {value!r}, but")
        return list(found) if isinstance(found, tuple) else found


def _fitting(value: Any, wanted: type) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        if wanted is int:
            return round(value)
        if wanted is float and abs(value) < sys.float_info.max:
            return float(f"{value:.{DIGITS}g}")
    return value


def behind_cost(name: str, keys: Iterable[str]) -> list[str]:
    """Those of ``keys`` that a cost follows from."""
    whole = tuple(one for one in _COST_KEYS[name] if one.endswith("."))
    return [key for key in keys if key in _COST_KEYS[name] or key.startswith(whole)]


def recorded_names(derive: Any) -> frozenset[str]:
    """The words in the formulas of ``derive`` that are no names of gsq's: an axis may have such a name."""
    texts = [text for text in derive.values() if isinstance(text, str)] if isinstance(derive, Mapping) else []
    words = {word for text in texts for word in re.findall(r"(?<![\w.])[A-Za-z_]\w*(?![\w.])", text)}
    return frozenset(
        words - {*SHORT_NAMES, *DERIVED_NAMES, *DERIVED, *FUNCTIONS, "and", "or", "not", "in", "if", "else"}
    )


def check_recorded(name: str, values: Iterable[Any], where: str) -> None:
    """Raise UserError for an axis, no config key, that cannot be a column of the results table."""
    if name in BY_NAME:
        raise UserError(f"{where}: '{name}' is a column of the results table and no config key; give it another name")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise UserError(f"{where}: {name}: {value!r} is not a number or a text, which derive can compute with")


def read_derive(values: Any, axes: Iterable[str], fixed: Iterable[str], where: str) -> tuple[Derivation, ...]:
    """Read ``derive:``. axes: those that are no config keys. fixed: config keys that ``set``, axes or a search give.

    Raises UserError for anything that differs from the module's docstring, an unknown name, and a circle.
    """
    if values is None:
        return ()
    if not isinstance(values, Mapping):
        raise UserError(
            f'{where}: {values!r} is not a mapping of config keys to formulas, such as {{steps: "2 * width"}}'
        )
    found: dict[str, Derivation] = {}
    for name, text in values.items():
        key = config_key(str(name), where)
        if not isinstance(text, str):
            raise UserError(f"{where}: {name}: {text!r} is not a formula in quotes; a fixed value belongs in set")
        if key in found:
            raise UserError(f"{where}: '{name}' is given twice, under two names")
        if key in fixed:
            raise UserError(
                f"{where}: '{name}' is given in set, axes, zip or search as well; leave it out of one of them"
            )
        names = (*SHORT_NAMES, *DERIVED_NAMES, *axes, *KEYS)
        found[key] = Derivation(str(name), key, Expression(text, f"{where}: {name}", names, FUNCTIONS))
    try:
        order = list(TopologicalSorter({key: one.needs(found) for key, one in found.items()}).static_order())
    except CycleError as error:
        circle = [found[key].text for key in error.args[1][:0:-1]]
        raise UserError(f"{where}: a circle: {'; '.join(circle)}; write one of them without the others") from None
    return tuple(found[key] for key in order)


def refuse_shares_of_horizons(derived: Iterable[Derivation], where: str) -> None:
    """Raise UserError where the discriminator starts after a share of the steps: horizons would share no trunk."""
    for one in derived:
        if one.key == START and STEPS in one.needs((STEPS,)):
            raise UserError(
                f"{where}: {one.text}: gives each horizon of optimizer.schedule 'wsd' another start, so that they "
                "share no trunk; write it in steps, such as set: {loss.discriminator_start: 100}"
            )

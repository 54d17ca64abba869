"""Select cells by signature, state, failure class or KEY=VALUE."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from gsq.config.overrides import SHORT_NAMES
from gsq.errors import UserError, nearest
from gsq.records.attempt import FAILURES
from gsq.sweeps.planning.cells import Plan, key_of
from gsq.sweeps.planning.names import value_of
from gsq.sweeps.spec.states import CANCELLED, PLANNED, QUEUED, STATES
from gsq.sweeps.state.reconcile import STOPPED
from gsq.sweeps.state.status import CellStatus, SweepStatus
from gsq.words import counted

# Most signatures in an error.
NAMED = 8


def select(plan: Plan, found: SweepStatus, words: Sequence[str]) -> list[CellStatus]:
    """Return the cells that a selection names, in the plan's order; without words, all of them.

    Raises UserError, listing what there is, for a word that is no state and fits no cell.
    """
    cells = {cell.signature: cell for cell in plan.cells}
    signatures: set[str] = set()
    states: set[str] = set()
    values: dict[str, set[str]] = defaultdict(set)
    for word in words:
        if "=" in word:
            name, _, text = word.partition("=")
            # An axis may be no config key, if a sweep computes others from it.
            program = bool(plan.cells[0].config.program)
            own = not program and "." not in name and name not in SHORT_NAMES
            own = own and any(name in cell.axes for cell in plan.cells)
            key = name if own else key_of(plan.cells[0].config, name, "selection")
            found_at = {s: c.axes.get(name) if own else value_of(c.config, key) for s, c in cells.items()}
            chosen = {s for s, value in found_at.items() if _holds(value, text)}
            if not chosen:
                there = Counter(_text(value) for value in found_at.values())
                listed = ", ".join(f"{value} ({counted(count, 'cell')})" for value, count in there.items())
                raise UserError(f"selection: no cell of sweep '{plan.name}' has {word}; {name} is {listed}")
            values[key] |= chosen
        elif word in STATES or word in FAILURES:
            # Users see a cell that waits for a worker as queued, whether or not a scheduler knows it.
            states |= {word, PLANNED} if word == QUEUED else {word}
        elif word == STOPPED:
            states.add(CANCELLED)
        else:
            signatures.add(_signature(plan, found, word))
    return [
        cell
        for cell in found.cells
        if (not signatures or cell.signature in signatures)
        and (not states or cell.state in states or cell.failure in states)
        and all(cell.signature in chosen for chosen in values.values())
    ]


def select_one(plan: Plan, found: SweepStatus, words: Sequence[str]) -> CellStatus:
    """Return the only cell that a selection names. Raises UserError if it names none or several."""
    chosen = select(plan, found, words)
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise UserError(
            f"selection: no cell of sweep '{plan.name}' is {' '.join(words)}; {_what_is_there(plan, found)}"
        )
    listed = "; ".join(f"{cell.signature} {cell.title}" for cell in chosen[:NAMED])
    more = f"; and {len(chosen) - NAMED} more" if len(chosen) > NAMED else ""
    which = f"selection: '{' '.join(words)}' matches" if words else "name one of"
    raise UserError(f"{which} {len(chosen)} cells of sweep '{plan.name}'; name one: {listed}{more}")


def _signature(plan: Plan, found: SweepStatus, word: str) -> str:
    fitting = [cell for cell in plan.cells if cell.signature.startswith(word)]
    if len(fitting) == 1:
        return fitting[0].signature
    if fitting and word:
        listed = "; ".join(f"{cell.signature} {cell.title}" for cell in fitting[:NAMED])
        raise UserError(f"selection: {len(fitting)} cells begin with '{word}', give more characters of one: {listed}")
    names = [*STATES, *FAILURES, *(cell.signature for cell in plan.cells)]
    raise UserError(
        f"selection: '{word}' is not a signature in sweep '{plan.name}', a state, a failure class or KEY=VALUE"
        f"{nearest(word, names)}; {_what_is_there(plan, found)}"
    )


def _what_is_there(plan: Plan, found: SweepStatus) -> str:
    failures = {STOPPED if name == CANCELLED else name: n for name, n in found.failures.items()}
    states = [f"{state} ({count})" for state, count in (found.counts | failures).items() if count]
    axes: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in plan.cells:
        for name, value in cell.axes.items():
            axes[name][_text(value)] = None
    parts = [
        f"states: {', '.join(states)}",
        *(f"{name}={'|'.join(values)}" for name, values in axes.items()),
        f"signatures: {', '.join(cell.signature for cell in plan.cells[:NAMED])}"
        + (f" and {len(plan.cells) - NAMED} more (gsq status --all)" if len(plan.cells) > NAMED else ""),
    ]
    return "there are " + "; ".join(parts)


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _holds(value: Any, text: str) -> bool:
    if isinstance(value, tuple):
        return re.findall(r"\d+", text) == [str(v) for v in value]
    if isinstance(value, bool):
        return str(value).lower() == text.lower()
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text

"""Results as JSON holds them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


def jsonable(value: Any) -> Any:
    """``value`` with dataclasses and mappings as dictionaries, sequences as lists, and None for NaN and infinity."""
    if dataclasses.is_dataclass(value):
        return {one.name: jsonable(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def picked(value: Any, *names: str) -> dict[str, Any]:
    """These attributes of ``value``, as JSON holds them."""
    return {name: jsonable(getattr(value, name)) for name in names}

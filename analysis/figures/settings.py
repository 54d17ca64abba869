"""Settings of axes as text for legends, labels and reports."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd

from gsq.config.axes import POWERS, SYMBOLS

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(value: object) -> float | str:
    """A number, or text; "nan" for one that is missing."""
    if isinstance(value, int | float | np.number):
        return float(value)
    return "nan" if value is None or value is pd.NA else str(value)


def settings(values: Mapping[str, float | str], *, powers: bool = True) -> str:
    """Several of :func:`setting`, with commas; those that are null are left out."""
    known = {name: value for name, value in values.items() if value == value and value != "nan"}
    return ", ".join(setting(name, value, powers=powers) for name, value in known.items())


def setting(name: str, value: float | str, *, powers: bool = True) -> str:
    """An axis and its value for a legend: "f=8", "V=2¹⁰"; "V=1024" without ``powers``."""
    if isinstance(value, str):
        if name == "other_axes":
            keys = json.loads(value) if value.startswith("{") else {}
            return ", ".join(f"{key.split('.')[-1]} {_short(one)}" for key, one in keys.items()) or "as in the base"
        return f"{name} {value}"
    shown = power_of_two(value) if name in POWERS and powers else _digits(value)
    return f"{SYMBOLS[name]}={shown}" if name in SYMBOLS else f"{name.replace('_', ' ')} {shown}"


def _digits(value: float) -> str:
    """A whole number with all its digits, any other one with four."""
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.4g}"


def _short(value: object) -> str:
    """A value of a config key to read."""
    if isinstance(value, list):
        return "[" + ", ".join(_short(one) for one in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def power_of_two(value: float) -> str:
    """ "2¹⁰" for 1024; plain digits where the value is no power of two."""
    exponent = np.log2(value)
    return power_text(2, round(exponent)) if exponent == round(exponent) else f"{value:g}"


def power_text(base: int, exponent: int) -> str:
    """ "2¹⁰": in Unicode, which takes a hundredth of the time that mathtext does."""
    return f"{base}{str(exponent).translate(_RAISED)}"

"""Scaling laws: rFID as a function of the tokenizer's axes.

Each law is fitted in internal parameters theta of shape (k,): log amplitudes at the centre of the usual range
(log2 V = 14, D = 16, 0.25 bits a pixel) and exponents. Centring takes the condition number of equation 14
from 4e11 to 2e4; what is reported are the natural parameters of the formula. A new law is one more entry in
LAWS.

Shapes: n rows, m covariates, k parameters; ``...`` is any number of leading axes (bootstrap draws).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.table import Array, measured, numbers, require_columns, with_bits_per_pixel

BPP_CENTRE = 0.25  # bits a pixel
LOG2_V_CENTRE = 14.0
D_CENTRE = 16.0


@dataclass(frozen=True)
class Law:
    """One functional form; its instances are in LAWS."""

    name: str
    formula: str
    source: str
    columns: tuple[str, ...]
    """Table columns that the formula reads."""
    parameters: tuple[str, ...]
    """Names of the k natural parameters."""
    covariates: Callable[[Mapping[str, Array]], Array]
    """Columns, each (n,), to centred log covariates (n, m). Inputs are positive and above ``above``."""
    log_prediction: Callable[[Array, Array], Array]
    """Covariates (n, m) and theta (..., k) to ln rFID (..., n)."""
    log_jacobian: Callable[[Array, Array], Array]
    """Covariates (n, m) and theta (k,) to d ln rFID / d theta (n, k)."""
    natural: Callable[[Array], Array]
    """theta (..., k) to the parameters of the formula (..., k)."""
    start_box: tuple[tuple[float, float], ...]
    """Where random starts are drawn: bounds of each theta; a log amplitude is relative to ln median rFID."""
    amplitudes: tuple[bool, ...]
    """Which theta are log amplitudes."""
    cannot: Callable[[pd.DataFrame], str | None]
    above: Mapping[str, float]
    """Each column must be greater than this (0, or 1 where log2 of it is divided by)."""

    def reason_not(self, frame: pd.DataFrame) -> str | None:
        """Why the rows of ``frame`` cannot carry this law, as a sentence; None where they can.

        Every row counts, so pass ``measured(frame)[0]``. Raises AnalysisError where a column is missing.
        """
        return self.cannot(with_bits_per_pixel(frame))

    def values(self, frame: pd.DataFrame) -> Array:
        """The covariates (n, m) of ``frame``. Raises AnalysisError naming a column that is missing, null or
        too small for its logarithm."""
        frame = with_bits_per_pixel(frame)
        columns = {}
        for name in self.columns:
            column = numbers(frame, name)
            wrong = ~(np.isfinite(column) & (column > self.above[name]))
            if wrong.any():
                raise AnalysisError(
                    f"column {name!r} must be finite and above {self.above[name]:g} because {self.name} "
                    "takes its "
                    f"logarithm; {wrong.sum()} of {len(column)} rows are not, the first is "
                    f"{column[wrong][0]:g}. "
                    "Drop or correct those rows"
                )
            columns[name] = column
        return self.covariates(columns)


def get_law(name: str | Law) -> Law:
    """The law called ``name``. Raises AnalysisError listing the valid names."""
    if isinstance(name, Law):
        return name
    if name not in LAWS:
        listed = "; ".join(f"{law.name} ({law.formula})" for law in LAWS.values())
        raise AnalysisError(f"there is no law {name!r}. Laws: {listed}")
    return LAWS[name]


def paper_law_reason(frame: pd.DataFrame) -> str | None:
    """Why the measured rows of ``frame`` cannot carry equation 14 of the paper; None where they can."""
    return LAWS["paper_eq14"].reason_not(measured(frame)[0])


def _listed(frame: pd.DataFrame, name: str) -> str:
    found = np.unique(numbers(frame, name))
    text = ", ".join(f"{value:g}" for value in found[:6])
    return text + (", ..." if len(found) > 6 else "") if len(found) else "none"


# --- power law in the bit rate -----------------------------------------------------------------------------


def _power_cannot(frame: pd.DataFrame) -> str | None:
    require_columns(frame, "bits_per_pixel")
    distinct = len(np.unique(np.round(numbers(frame, "bits_per_pixel"), 12)))
    if distinct < 3:
        return (
            f"power_law_bpp needs at least 3 distinct bits_per_pixel, got {distinct} "
            f"({_listed(frame, 'bits_per_pixel')}); add cells that differ in groups, codebook_size or "
            "downsample"
        )
    return None


POWER_LAW_BPP = Law(
    name="power_law_bpp",
    formula="rfid = c * bits_per_pixel^(-alpha)",
    source="one bit rate for all axes: bits_per_pixel = G log2(V) / f^2",
    columns=("bits_per_pixel",),
    parameters=("c", "alpha"),
    covariates=lambda c: np.log(c["bits_per_pixel"] / BPP_CENTRE)[:, None],
    log_prediction=lambda x, theta: theta[..., :1] - theta[..., 1:] * x[:, 0],
    log_jacobian=lambda x, theta: np.stack([np.ones(len(x)), -x[:, 0]], axis=1),
    natural=lambda theta: np.stack([_exp(theta[..., 0] + theta[..., 1] * np.log(BPP_CENTRE)), theta[..., 1]], -1),
    start_box=((-2.0, 2.0), (-1.0, 4.0)),
    amplitudes=(True, False),
    cannot=_power_cannot,
    above={"bits_per_pixel": 0.0},
)


# --- arXiv 2412.02632, equation 14 -------------------------------------------------------------------------


def _eq14_cannot(frame: pd.DataFrame) -> str | None:
    require_columns(frame, "groups", "downsample", "codebook_size", "latent_dim")
    if not (numbers(frame, "groups") == 1).all():
        return f"paper_eq14 holds for groups = 1 only, got groups {_listed(frame, 'groups')}; select those rows"
    if frame["downsample"].nunique(dropna=False) != 1:
        return (
            "paper_eq14 has no term for downsample and needs one value of it, got "
            f"{_listed(frame, 'downsample')}; "
            "select the rows of one"
        )
    for name in ("codebook_size", "latent_dim"):
        if frame[name].nunique() < 2:
            return f"paper_eq14 needs {name} to vary, got {_listed(frame, name)} only; add cells with others"
    cells = len(frame[["codebook_size", "latent_dim"]].drop_duplicates())
    if cells < 6:
        return (
            "paper_eq14 has 4 parameters and needs at least 6 distinct cells of codebook_size and "
            "latent_dim, "
            f"got {cells}; add cells"
        )
    return None


def _eq14_terms(x: Array, theta: Array) -> tuple[Array, Array]:
    """ln of the codebook term and of the channel term, each (..., n)."""
    codebook = theta[..., 0:1] - theta[..., 1:2] * x[:, 0]
    channels = theta[..., 2:3] + theta[..., 3:4] * x[:, 1]
    return codebook, channels


def _eq14_jacobian(x: Array, theta: Array) -> Array:
    codebook, channels = _eq14_terms(x, theta)
    total = np.logaddexp(codebook, channels)
    first, second = np.exp(codebook - total), np.exp(channels - total)  # each term's share of the prediction
    return np.stack([first, -first * x[:, 0], second, second * x[:, 1]], axis=1)


def _eq14_natural(theta: Array) -> Array:
    b, alpha, c, beta = np.moveaxis(theta, -1, 0)
    return np.stack([_exp(b + alpha * np.log(LOG2_V_CENTRE)), alpha, _exp(c - beta * np.log(D_CENTRE)), beta], axis=-1)


def _exp(value: Array) -> Array:
    # An amplitude that the data do not determine can run off; it is reported as huge, not as an overflow.
    return np.exp(np.clip(value, -700, 700))


PAPER_EQ14 = Law(
    name="paper_eq14",
    formula="rfid = B / log2(codebook_size)^alpha + C * latent_dim^beta",
    source="arXiv 2412.02632, equation 14",
    columns=("codebook_size", "latent_dim"),
    parameters=("B", "alpha", "C", "beta"),
    covariates=lambda c: np.stack(
        [np.log(np.log2(c["codebook_size"]) / LOG2_V_CENTRE), np.log(c["latent_dim"] / D_CENTRE)], axis=1
    ),
    log_prediction=lambda x, theta: np.logaddexp(*_eq14_terms(x, theta)),
    log_jacobian=_eq14_jacobian,
    natural=_eq14_natural,
    start_box=((-4.0, 1.0), (0.0, 6.0), (-4.0, 1.0), (0.0, 2.0)),
    amplitudes=(True, False, True, False),
    cannot=_eq14_cannot,
    above={"codebook_size": 1.0, "latent_dim": 0.0},
)

LAWS: dict[str, Law] = {law.name: law for law in (POWER_LAW_BPP, PAPER_EQ14)}

"""The named laws, and laws by name or formula.

A new law is one more entry in LAWS, or just its formula: ``fit(frame, "rfid = E + A / N^a", ...)``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.laws.formula import split_target, with_target
from gsq.analysis.laws.law import KNOWN, Bound, Law
from gsq.analysis.tables.outputs import OUT, joined
from gsq.analysis.tables.table import measured, unquoted
from gsq.config.axes import DERIVED

__all__ = ["COMPARED", "DEFAULT_LAWS", "LAWS", "Bound", "Law", "get_law", "paper_law_reason"]


def get_law(
    law: str | Law,
    columns: Collection[str] = (),
    bounds: Mapping[str, tuple[float, Bound]] | None = None,
    starts: Mapping[str, tuple[float, float]] | None = None,
    target: str | Sequence[str] | None = None,
) -> Law:
    """The law called ``law``, or the one whose formula it is.

    ``columns``: the names of a formula that are columns (default: those of a results table); ``bounds`` and ``starts``
    are added to the law's own; ``target`` takes the place of its target. Several targets share the parameters of the
    formula, but for those that it indexes by ``[out]``. Raises AnalysisError listing the valid names, for a formula
    that cannot be read, and for several targets without a parameter of their own.
    """
    outputs = _outputs(target)
    columns = (*columns, OUT) if outputs and columns else columns
    if isinstance(law, str):
        if law in LAWS:
            law = LAWS[law]
        elif any(sign in law for sign in "+-*/^=(` "):
            known = (*columns, *DERIVED) if columns else (*KNOWN, *([OUT] if outputs else []))
            law = Law(split_target(law)[1], law, known=known)
        else:
            listed = "; ".join(f"{one.name} ({one.formula})" for one in LAWS.values())
            raise AnalysisError(f"there is no law {law!r}. Laws: {listed}; or write a formula over columns")
    if bounds or starts:
        law = replace(law, bounds={**law.bounds, **(bounds or {})}, starts={**law.starts, **(starts or {})})
    name = joined(outputs) if outputs else target if target is None or isinstance(target, str) else target[0]
    if name is not None and unquoted(name) != law.target:
        law = replace(law, formula=with_target(law.formula, unquoted(name)))
    if outputs and OUT not in law.factors:
        raise AnalysisError(
            f"{law.name}: {len(outputs)} targets ({joined(outputs)}) need a parameter with a value for each, written "
            f"with the index [{OUT}], such as A[{OUT}]; without one the law says the same of all of them"
        )
    itself = [one for one in law.reads if one in (outputs or (law.target,))]
    if itself:
        raise AnalysisError(
            f"{law.name} would predict {itself[0]!r} from {itself[0]!r} itself; leave that column out of the formula, "
            "or name another one to predict"
        )
    return replace(law, outputs=outputs) if outputs else law


def _outputs(target: str | Sequence[str] | None) -> tuple[str, ...]:
    """The columns of several targets; () for one or none."""
    if target is None or isinstance(target, str):
        return ()
    names = tuple(map(unquoted, target))
    if not names or len(set(names)) < len(names):
        raise AnalysisError(f"target: name each column to predict once; got {joined(names) or 'none'}")
    return names if len(names) > 1 else ()


def paper_law_reason(frame: pd.DataFrame) -> str | None:
    """Why the measured rows of ``frame`` cannot carry equation 14 of the paper; None where they can."""
    return LAWS["paper_eq14"].reason_not(measured(frame)[0])


_POSITIVE = (0.0, np.inf)
_SMOOTH = (0.05, 3.0)  # sharper or smoother breaks cannot be told apart

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "power_law_bpp",
            "rfid = c * bits_per_pixel^(-alpha)",
            "one bit rate for all axes: bits_per_pixel = G log2(V) / f^2",
            bounds={"c": _POSITIVE},
            starts={"alpha": (-1, 4)},
            reference={"c": 0.1681, "alpha": 0.8694},
        ),
        Law(
            "paper_eq14",
            "rfid = B / log2(codebook_size)^alpha + C * latent_dim^beta",
            "arXiv 2412.02632, equation 14",
            bounds={"B": _POSITIVE, "C": _POSITIVE},
            starts={"alpha": (0, 6), "beta": (0, 2)},
            holds_for={"groups": 1, "downsample": None},
            reference={"B": 412.6, "alpha": 2.8387, "C": 0.1599, "beta": 0.1962},
        ),
        Law(
            "inverse_bpp",
            "rfid = c / bits_per_pixel",
            "power_law_bpp with exponent 1",
            bounds={"c": _POSITIVE},
            reference={"c": 0.1386},
        ),
        Law(
            "multiplicative",
            "rfid = A * log2(codebook_size)^(-a) * latent_dim^b",
            "power law in bits an index and channels",
            bounds={"A": _POSITIVE},
            starts={"a": (-1, 4), "b": (-1, 2)},
            holds_for={"groups": 1, "downsample": None},
            reference={"A": 5.357, "a": 1.026, "b": 0.1265},
        ),
        Law(
            "channel_limit",
            "rfid = c / (log2(codebook_size) * (1 + kappa / latent_dim))",
            "few channels help, many no longer hurt",
            bounds={"c": _POSITIVE, "kappa": _POSITIVE},
            starts={"kappa": (0.1, 100)},
            holds_for={"groups": 1, "downsample": None},
            reference={"c": 8.558, "kappa": 2.790},
        ),
        Law(
            "saturating",
            "rfid = c * downsample^2 / (groups * min(log2(codebook_size), s * group_dim))",
            "bits per pixel, of which a dimension carries s at most",
            bounds={"c": _POSITIVE, "s": _POSITIVE},
            starts={"s": (0.3, 30)},
            reference={"c": 0.1191, "s": 3.205},
        ),
        Law(
            "power_law_floor",
            "rfid = E + c * bits_per_pixel^(-alpha)",
            "power_law_bpp above what no rate improves",
            bounds={"E": _POSITIVE, "c": _POSITIVE},
            starts={"alpha": (0, 4)},
            simpler="power_law_bpp",
        ),
        Law(
            "chinchilla",
            "rfid = E + A / parameters^a + B / images_seen^b",
            "arXiv 2203.15556, equation 2, with images for tokens",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "B": _POSITIVE},
            starts={"a": (0, 2), "b": (0, 2)},
        ),
        Law(
            "step_approach",
            "rfid = E + A * exp(-step / tau)",
            "exponential approach of a learning curve",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "tau": _POSITIVE},
        ),
        Law(
            "step_power",
            "rfid = E + A * step^(-a)",
            "power law of a learning curve",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "a": _POSITIVE},
            starts={"a": (0.05, 3)},
        ),
        Law(
            "broken_power_law",
            "rfid = c * bits_per_pixel^(-alpha) * (1 + (bits_per_pixel / d)^(1 / s))^(-beta * s)",
            "arXiv 2210.14891, equation 1: from exponent alpha to alpha + beta at a rate of d, over a factor of exp(s)",
            bounds={"c": _POSITIVE, "d": _POSITIVE, "s": _SMOOTH},
            starts={"alpha": (-1, 4), "beta": (-3, 3), "s": (0.1, 1)},
            simpler="power_law_bpp",
        ),
        Law(
            "broken_power_law_2",
            "rfid = c * bits_per_pixel^(-alpha) * (1 + (bits_per_pixel / d)^(1 / s))^(-beta * s) * "
            "(1 + (bits_per_pixel / (k * d))^(1 / s))^(-gamma * s)",
            "arXiv 2210.14891, equation 1, with a second break at k times the rate of the first",
            bounds={"c": _POSITIVE, "d": _POSITIVE, "k": (1.0, np.inf), "s": _SMOOTH},
            starts={"alpha": (-1, 4), "beta": (-3, 3), "gamma": (-3, 3), "k": (1.5, 200), "s": (0.1, 1)},
            simpler="broken_power_law",
        ),
        Law(
            "data_constrained",
            "rfid = E + A / parameters^a + B * min(images_seen, unique_images)^(-b) * "
            "(1 + r * (1 - exp(-max(images_seen / unique_images - 1, 0) / r)))^(-b)",
            "arXiv 2305.16264, equation 5: chinchilla, repeated images counting for r repetitions at most",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "B": _POSITIVE, "r": _POSITIVE},
            starts={"a": (0, 2), "b": (0, 2), "r": (0.5, 100)},
            known=(*KNOWN, "unique_images"),
            simpler="chinchilla",
        ),
        Law(
            "farseer",
            "rfid = exp(a3 * parameters^gamma + b3) + exp(a2 * parameters^beta + b2) * "
            "images_seen^(-exp(a1 * parameters^alpha + b1))",
            "arXiv 2506.10972: the exponent of the images depends on the parameters",
            bounds={"gamma": (0.01, 2.0), "beta": (-2.0, -0.01), "alpha": (0.01, 2.0)},
            starts={
                **{"a3": (-0.5, 0.0), "gamma": (0.02, 0.5), "b3": (-1.0, 2.0), "a2": (1.0, 300.0)},
                **{
                    "beta": (-0.5, -0.02),
                    "b2": (-15.0, 3.0),
                    "a1": (-0.5, 0.0),
                    "alpha": (0.02, 0.5),
                    "b1": (-1.0, 2.0),
                },
            },
        ),
        Law(
            "kaplan",
            "rfid = ((N_c / parameters)^(a / b) + D_c / images_seen)^b",
            "arXiv 2001.08361, equation 1.5, with images for tokens",
            bounds={"N_c": _POSITIVE, "D_c": _POSITIVE, "a": _POSITIVE, "b": _POSITIVE},
            starts={"N_c": (1e3, 1e18), "D_c": (1e3, 1e18), "a": (0.02, 1), "b": (0.02, 1)},
        ),
        Law(
            "precision",
            "rfid = E + A * parameters^(-a) * (1 - exp(-weight_bits / gamma))^(-a) + B / images_seen^b",
            "arXiv 2411.04330, equation 3, weights alone: chinchilla, of weight_bits bits a weight",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "B": _POSITIVE, "gamma": _POSITIVE},
            starts={"a": (0, 2), "b": (0, 2), "gamma": (0.2, 30)},
            known=(*KNOWN, "weight_bits"),
            simpler="chinchilla",
        ),
        Law(
            "critical_batch",
            "rfid = E + A * (step / (1 + B_c / batch_size))^(-a)",
            "arXiv 1812.06162, equation 2.11: an rfid takes S (1 + B_c / batch_size) steps, S of them at a large batch",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "a": _POSITIVE, "B_c": _POSITIVE},
            starts={"a": (0.05, 3), "B_c": (1, 1e4)},
            simpler="step_power",
        ),
        Law(
            "prior_rate",
            "rfid = c * prior_bits_per_pixel^(-alpha)",
            "power_law_bpp at the rate that a generation probe has learned, in the place of the nominal one",
            bounds={"c": _POSITIVE},
            starts={"alpha": (-1, 4)},
        ),
        Law(
            "tradeoff",
            "gfid = g * exp(k * log(prior_bits_per_pixel / b)^2)",
            "quadratic in log bits: the least gfid, g, is at b prior bits per pixel",
            bounds={"g": _POSITIVE, "k": _POSITIVE, "b": (1e-3, 1e3)},
            starts={"k": (0.01, 1), "b": (0.05, 10)},
        ),
    )
}
COMPARED = tuple(LAWS)[:10]
"""Laws that a comparison fits by default; each of the others answers a question of its own."""
DEFAULT_LAWS = ("power_law_bpp", "paper_eq14")
"""Those that ``gsq fit`` tries where none is named."""

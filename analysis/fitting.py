"""Fitting a law to a table: many starts, an analytic Jacobian, bootstrap intervals, and plain words about
both.

See :class:`analysis.Fit` for what comes out, ``laws`` for the forms, ``solver`` for the minimisation and
``uncertainty`` for the bootstrap.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.laws import Law, get_law
from analysis.result import Fit
from analysis.solver import Residuals, multi_start, solve
from analysis.table import (
    CONFIGURATION_AXES,
    Array,
    configuration_ids,
    measured,
    numbers,
    single,
    varying,
)
from analysis.uncertainty import Draws, Index, bootstrap, percentile_interval, undetermined

FEW_CONFIGURATIONS = 8  # below this a bootstrap by configuration has too few distinct resamples to be trusted
_TOKENIZER_AXES = ("latent_dim", "groups", "codebook_size", "downsample")


def fit(
    frame: pd.DataFrame,
    law: str | Law = "power_law_bpp",
    *,
    residuals: Residuals = "log",
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Fit:
    """Fit ``law`` to the measured rows of ``frame``.

    ``residuals``: "log" weighs relative errors (rFID spans decades), "linear" absolute ones, as the paper
    does. ``bootstrap``: number of resamples by configuration; 0 for none. The result depends on ``seed`` and
    nothing else. Raises AnalysisError for an unknown law, a table that cannot carry it (with the reason),
    mixed protocols, or options out of range.
    """
    chosen = get_law(law)
    _check_options(residuals, bootstrap, confidence)
    rows, excluded = measured(frame)
    x, rfid = chosen.values(rows), numbers(rows, "rfid")
    reason = chosen.reason_not(rows)
    if reason is not None:
        raise AnalysisError(reason)
    configurations = configuration_ids(rows)
    n_configurations = int(configurations.max()) + 1
    if n_configurations < len(chosen.parameters):
        raise AnalysisError(
            f"{chosen.name} has {len(chosen.parameters)} parameters ({', '.join(chosen.parameters)}) and the "
            "table "
            f"{n_configurations} measured configurations; seeds of one configuration count once. Add cells"
        )
    theta, converged = multi_start(chosen, x, rfid, residuals, seed)
    jacobian = chosen.log_jacobian(x, theta)
    if np.linalg.matrix_rank(jacobian) < len(theta):
        raise AnalysisError(
            f"{chosen.name}: these cells cannot tell {', '.join(chosen.parameters)} apart (the Jacobian at "
            "the optimum "
            f"is singular); vary {' and '.join(chosen.columns)} independently"
        )
    draws = _bootstrap(chosen, x, rfid, residuals, theta, jacobian, configurations, bootstrap, seed)
    low, high = percentile_interval(chosen.natural(draws.theta), confidence)
    intervals = {name: (float(low[i]), float(high[i])) for i, name in enumerate(chosen.parameters)}
    log_prediction = chosen.log_prediction(x, theta)
    error, log_error = rfid - np.exp(log_prediction), np.log(rfid) - log_prediction
    best = rows.iloc[[int(np.argmin(log_prediction))]]
    return Fit(
        law=chosen,
        parameters=dict(zip(chosen.parameters, map(float, chosen.natural(theta)), strict=True)),
        intervals=intervals,
        undetermined=undetermined(chosen.natural(draws.theta), intervals),
        residuals=residuals,
        confidence=confidence,
        rmse=float(np.sqrt(np.mean(error**2))),
        log_rmse=float(np.sqrt(np.mean(log_error**2))),
        n_rows=len(rows),
        n_configurations=n_configurations,
        converged_share=converged,
        spearman=_spearman(rows),
        bootstrap_requested=draws.requested,
        bootstrap_failed=draws.failed,
        bootstrap_redrawn=draws.redrawn,
        excluded=excluded.text,
        warnings=(
            *_table_warnings(rows, excluded.text, excluded.warnings),
            *_fit_warnings(draws, n_configurations),
        ),
        protocol=single(rows, "protocol"),
        features=single(rows, "features"),
        best={name: float(numbers(best, name)[0]) for name in chosen.columns},
        theta=theta,
        draws=draws.theta,
    )


def _check_options(residuals: str, resamples: int, confidence: float) -> None:
    if residuals not in ("log", "linear"):
        raise AnalysisError(f"residuals must be 'log' or 'linear', got {residuals!r}")
    if resamples < 0:
        raise AnalysisError(f"bootstrap is a number of resamples, 0 for none; got {resamples}")
    if not 0 < confidence < 1:
        raise AnalysisError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 gives 95 % intervals")


def _bootstrap(
    law: Law,
    x: Array,
    rfid: Array,
    residuals: Residuals,
    theta: Array,
    jacobian: Array,
    configurations: Index,
    count: int,
    seed: int,
) -> Draws:
    def refit(rows: Index) -> Array | None:
        solution = solve(law, x[rows], rfid[rows], residuals, theta)
        return None if solution is None else solution[0]

    return bootstrap(refit, jacobian, configurations, count, seed)


def _table_warnings(rows: pd.DataFrame, excluded: str, large_end: tuple[str, ...]) -> tuple[str, ...]:
    warnings = [*([excluded] if excluded else []), *large_end]
    others = varying(rows, [name for name in CONFIGURATION_AXES if name not in _TOKENIZER_AXES])
    if others:
        warnings.append(f"{', '.join(others)} also vary in this table, and no law here has a term for them")
    if "rank_deficient" in rows and rows["rank_deficient"].fillna(False).astype(bool).any():
        warnings.append("rfid from fewer images than features is biased upwards: compare its values, do not quote them")
    return tuple(warnings)


def _fit_warnings(draws: Draws, n_configurations: int) -> tuple[str, ...]:
    warnings = []
    if draws.requested == 0:
        warnings.append("no intervals: bootstrap = 0")
    elif n_configurations < FEW_CONFIGURATIONS:
        warnings.append(f"intervals resampled from {n_configurations} configurations are rough, and usually too narrow")
    if draws.failed:
        warnings.append(f"{draws.failed} of {draws.requested} resamples failed: the intervals leave them out")
    return tuple(warnings)


def _spearman(rows: pd.DataFrame) -> float | None:
    if "bits_per_pixel" not in rows or rows["bits_per_pixel"].nunique() < 2 or rows["rfid"].nunique() < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(numbers(rows, "bits_per_pixel"), numbers(rows, "rfid")).statistic)

"""Writes predictions.csv: what laws, a naive law and a random forest say of cells that no one has trained yet.

    pip install scikit-learn==1.9.1 && python results/tokenizer-laws/predict.py

It reads the committed tables of the grid and the widths alone, and the cells from predictions.yaml: more bits
than any cell of the grid, twice its training, and twice its largest width. The laws are fixed here, with what they may
say: rFID falls with bits, images and width, and may have a floor. Their predictions are averaged by AICc weights. The
naive law knows the rate alone. The forest reads the same columns of the same rows; the scatter of its out-of-bag errors
makes its interval. All intervals are those of one new run, and all of it was committed before any of these cells ran.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.stats import norm

from gsq import analysis

HERE = Path(__file__).parent
COLUMNS = ("downsample", "latent_dim", "groups", "codebook_size", "width", "steps", "seed")
BITS = "downsample^a * bits_per_token^(-b)"
FALLING = "downsample^(a + t * log(images_seen / 20480)) * bits_per_token^(-b)"
LAWS = (
    f"rfid = c * {BITS} * images_seen^(-g) * width^(-w)",
    f"rfid = c * {BITS} * images_seen^(-g) * width^(-w) * latent_dim^h",
    f"rfid = E + c * {BITS} * images_seen^(-g) * width^(-w)",
    f"rfid = c * {BITS} * width^(-w) + q * images_seen^(-g)",
    "rfid = c * downsample^a * bits_per_token^(-b - h * log(images_seen / 20480)) * images_seen^(-g) * width^(-w)",
    f"rfid = c * {BITS} * (1 + (s / images_seen)^g) * width^(-w)",
    # Added when the grid was done, and before any of these cells ran: f counts for more after longer training.
    f"rfid = c * {FALLING} * images_seen^(-g) * width^(-w) * latent_dim^h",
    f"rfid = c * {FALLING} * images_seen^(-m - k * log(images_seen / 20480)) * width^(-w)",
)
POSITIVE = ("E", "q", "s", "b", "g", "w")
NAIVE = "power_law_bpp"
Z = 1.959964


def measured_rows() -> pd.DataFrame:
    """The rows that predictions may read: gsq with the exact look-up, at all widths and lengths of training."""
    tables = [HERE / f"{name}.parquet" for name in ("grid", "widths")]
    frame = analysis.load_tables([path for path in tables if path.exists()])
    return frame[(frame["state"] == "done") & (frame["quantizer"] == "gsq")].reset_index(drop=True)


def wanted_cells() -> pd.DataFrame:
    """The cells of predictions.yaml."""
    text = (HERE / "predictions.yaml").read_text(encoding="utf-8")
    cells = analysis.with_derived(pd.DataFrame(yaml.safe_load(text)["cases"]))
    return cells.assign(images_seen=32 * cells["steps"])


def forest(rows: pd.DataFrame, cells: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted, low and high of a random forest over the columns that the laws read, in logarithms."""
    from sklearn.ensemble import RandomForestRegressor  # type: ignore[import-not-found,import-untyped,unused-ignore]

    names = ["downsample", "bits_per_token", "latent_dim", "images_seen", "width"]
    model = RandomForestRegressor(n_estimators=1000, min_samples_leaf=2, oob_score=True, random_state=0)
    values = np.log(rows["rfid"].to_numpy(float))
    model.fit(np.log(rows[names].to_numpy(float)), values)
    spread = Z * float(np.std(values - model.oob_prediction_))
    found = model.predict(np.log(cells[names].to_numpy(float)))
    return np.exp(found), np.exp(found - spread), np.exp(found + spread)


def scored(frame: pd.DataFrame) -> pd.DataFrame:
    """How the written predictions came out against ``frame``: a row for each of the three ways.

    ``inside``: share of cells within the 95 % interval; ``log_rmse``: of ln rfid; ``log_score``: mean logarithm of the
    density, normal in ln rfid, that the interval gave to what was measured (larger is better).
    """
    written = pd.read_csv(HERE / "predictions.csv")
    rows = []
    for name in ("law", "naive", "forest"):
        one = written.rename(columns={name: "predicted", f"{name}_low": "low", f"{name}_high": "high"})
        found = analysis.check_predictions(one, frame, COLUMNS).dropna(subset="measured")
        spread = np.log(found["high"] / found["low"]) / (2 * Z)
        score = norm.logpdf(found["log_error"], scale=spread).mean() - np.log(found["measured"]).mean()
        errors = {"inside": found["inside"].mean(), "log_rmse": np.sqrt((found["log_error"] ** 2).mean())}
        rows.append({"by": name, "cells": len(found), **errors, "log_score": score})
    return pd.DataFrame(rows).set_index("by")


def main() -> None:
    rows, cells = measured_rows(), wanted_cells()
    columns = list(rows.columns)
    chosen = []
    for text in LAWS:
        bounds = {name: (0.0, np.inf) for name in POSITIVE if name in analysis.get_law(text, columns).parameters}
        chosen.append(analysis.get_law(text, columns, bounds))
    laws = analysis.compare_laws(rows, chosen)
    naive = analysis.fit(rows, NAIVE)
    print(laws.text())
    by = {
        "law": laws.predict(cells, single_run=True),
        "naive": naive.predict(cells, single_run=True),
        "forest": forest(rows, cells),
    }
    written = cells[[*COLUMNS, "bits_per_pixel", "images_seen"]]
    for name, (predicted, low, high) in by.items():
        written = written.assign(**{name: predicted, f"{name}_low": low, f"{name}_high": high})
    written.to_csv(HERE / "predictions.csv", index=False, float_format="%.5g", lineterminator="\n")
    print(written.to_string())


if __name__ == "__main__":
    main()

"""Writes predictions.csv: what laws fitted to the small half say of the large half's cells, before these are trained.

    python results/photos-scaling/predict.py

It was run when the small half alone had been trained; of the whole table it reads those rows and writes the same. The
laws are fixed here; each is fitted to the small half's cells with the exact look-up, and predictions are averaged by
AICc weights. The intervals are for one new run. Cells with the bfloat16 look-up are predicted as if it were exact: what
they miss is its effect.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from gsq import analysis

HERE = Path(__file__).parent
PRECISION = "quantizer.lookup_precision"
LAWS = (
    "inverse_bpp",
    "power_law_bpp",
    "power_law_floor",
    "saturating",
    "rfid = c * (groups * min(log2(codebook_size), s * group_dim) / downsample^2)^(-alpha)",
    "rfid = c * bits_per_pixel^(-alpha) * latent_dim^b",
    "rfid = c * bits_per_pixel^(-alpha) * group_dim^b",
    "rfid = c * downsample^a * groups^(-b) * log2(codebook_size)^(-e)",
    "rfid = c * downsample^a * groups^(-b) * log2(codebook_size)^(-e) * latent_dim^h",
)


def exact(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the exact look-up."""
    return frame[frame[PRECISION].fillna("exact") == "exact"] if PRECISION in frame else frame


def is_small(frame: pd.DataFrame) -> pd.Series:
    """Whether a cell belongs to the half that was trained first."""
    return (frame["codebook_size"] <= 1024) & (frame["bits_per_pixel"] <= 2.5)


def large_cells() -> pd.DataFrame:
    """The cells of the large half, from the sweep."""
    cells = pd.DataFrame(yaml.safe_load((HERE / "photos-scaling.yaml").read_text(encoding="utf-8"))["cases"])
    cells[PRECISION] = cells[PRECISION].fillna("exact")
    cells = analysis.with_derived(cells)
    return cells[~is_small(cells)].reset_index(drop=True)


def predictions(small: pd.DataFrame) -> tuple[analysis.Comparison, pd.DataFrame]:
    """The laws fitted to ``small``, and the large half's cells with predicted, low and high."""
    found = analysis.compare_laws(small, LAWS)
    cells = large_cells()
    predicted, low, high = found.predict(cells, single_run=True)
    return found, cells.assign(predicted=predicted, low=low, high=high)


def main() -> None:
    frame = analysis.load_results(HERE / "photos-scaling.parquet")
    small = exact(frame[is_small(analysis.with_derived(frame)) & (frame["state"] == "done")])
    found, cells = predictions(small)
    print(found.text())
    columns = ["downsample", "latent_dim", "groups", "codebook_size", "seed", PRECISION, "bits_per_pixel"]
    columns += ["predicted", "low", "high"]
    cells[columns].to_csv(HERE / "predictions.csv", index=False, float_format="%.5g", lineterminator="\n")
    print(cells[columns].to_string())


if __name__ == "__main__":
    main()

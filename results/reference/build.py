"""Builds gsq_paper.parquet from gsq_paper.csv, the numbers of arXiv 2412.02632v2 as a results table, and
published.parquet from published.csv (gsq.analysis.tables.published).

    python results/reference/build.py

One row a trained model. ``sweep`` is the table or figure it was taken from, ``message`` what is to know of the row
(misprints, values read off a figure), ``other_axes`` the config keys by which it differs and that have no column.
Values at 128 and at 256 pixels are of different protocols. What the paper does not print stays null. Nearly all rFID
values of three decimals lie on the bfloat16 grid: steps of 1/512 between 0.25 and 0.5, of 1/128 between 1 and 2.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path

from gsq.analysis.tables.published import EXTRA, published_rows
from gsq.sweeps.schema.columns import write_table

HERE = Path(__file__).parent
WHOLE = ("image_size", "downsample", "latent_dim", "groups", "codebook_size", "steps", "batch_size")
METRICS = ("rfid", "inception_score", "lpips", "psnr_db", "ssim", "usage", "perplexity")


def rows(source: Path) -> list[dict[str, object]]:
    """The rows of the CSV as those of a results table, derived axes added."""
    with source.open(newline="", encoding="utf-8") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, str]) -> dict[str, object]:
    size, f, d, g, v, steps, batch = (int(line[name]) for name in WHOLE)
    bits = g * math.log2(v)
    known = "|".join(line[name] for name in ("source", *WHOLE, "learning_rate", "config"))
    return {
        "sweep": line["source"],
        "signature": hashlib.sha256(f"arXiv 2412.02632v2|{known}".encode()).hexdigest()[:12],
        "step": steps,
        "protocol": f"gsq-paper-{size}",
        "features": "inception_v3 as the paper used it",
        "feature_dim": 2048,
        "num_images": 50_000,
        "resolution": size,
        "rank_deficient": False,
        "quantizer": "gsq",
        **dict(zip(WHOLE, (size, f, d, g, v, steps, batch), strict=True)),
        "group_dim": d // g,
        "depth": 1,
        "width": 128,
        "learning_rate": float(line["learning_rate"]) if line["learning_rate"] else None,
        "data": "imagenet",
        "other_axes": json.dumps(json.loads(line["config"]), sort_keys=True) if line["config"] else None,
        "bits_per_token": bits,
        "bits_per_pixel": bits / f**2,
        "compression_ratio": 3 * f**2 / d,
        "tokens_per_image": g * (size // f) ** 2,
        **{name: float(line[name]) if line[name] else None for name in METRICS},
        "images_seen": steps * batch,
        "parameters": round(float(line["parameters_millions"]) * 1e6) if line["parameters_millions"] else None,
        "state": "done",
        "message": line["note"] or None,
    }


if __name__ == "__main__":
    # A link: the file itself ships with analysis.
    write_table(rows(HERE / "gsq_paper.csv"), (HERE / "gsq_paper.parquet").resolve())
    write_table(published_rows(HERE / "published.csv"), (HERE / "published.parquet").resolve(), EXTRA)

"""Draws the README's figure: python results/photos-scaling/figure.py (make figures does)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from gsq import analysis
from gsq.analysis.figures.style import save, style

HERE = Path(__file__).parent


def main() -> None:
    tables = [analysis.load_results(HERE / f"{name}.parquet") for name in ("photos-scaling", "photos-channels")]
    frame = pd.concat(tables, ignore_index=True)
    exact = frame[frame["quantizer.lookup_precision"].isna()]
    with style():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        law = analysis.fit(exact, "power_law_bpp", bootstrap=0)
        analysis.draw_panel(analysis.rate_panel(exact, [law]), figure.subplots())
        save(figure, HERE / "photos-scaling.png")


if __name__ == "__main__":
    main()

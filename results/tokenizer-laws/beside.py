"""Answers beside the eight: how evenly rFID falls, what a wrong learning rate costs, how the predictions came out."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import predict
from matplotlib.figure import Figure
from study import AXES, CELL, HERE, LONGEST, STEPS, Answer, grid, mean_interval, name_axes, over_seeds, shades

from gsq import analysis


def smoothness(frame: pd.DataFrame) -> Answer:
    """Whether the last doubling of the training changes rFID as those before it did."""
    rows = grid(frame, None)
    rows = rows[rows["seed"] == 0]
    cells = [name for name in AXES if name != "steps"]
    rfid, psnr = (rows.pivot_table(index=cells, columns="steps", values=name).dropna() for name in ("rfid", "psnr_db"))
    ratios = [rfid[after] / rfid[before] for before, after in itertools.pairwise(STEPS)]
    fell = ratios[-1] < 0.5
    gain = psnr[LONGEST] - psnr[STEPS[-2]]
    ends = [f"{part.min():.1f} to {part.max():.1f}" for part in (gain[fell], gain[~fell])]
    earlier = sum((one < 0.5).sum() for one in ratios[:-1])
    text = (
        f"No: the last doubling of the training takes rFID to between {ratios[-1].min():.0%} and "
        f"{ratios[-1].max():.0%}, and more than halves it in {fell.sum()} of {len(rfid)} cells (earlier doublings in "
        f"{earlier}). PSNR gains {ends[0]} dB in those cells and {ends[1]} in the others."
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 3, sharey=True)
        for axis, f, colour in zip(axes, (2, 4, 8), shades(3), strict=True):
            for cell, values in rfid.iterrows():
                if cell[cells.index("downsample")] == f:  # type: ignore[index]
                    axis.plot([32 * steps for steps in STEPS], values, ".-", lw=0.8, color=colour)
            name_axes(axis, "training images", "rFID" if f == 2 else "")
            axis.set_title(f"f = {f}", fontsize="small")

    return Answer("Does rFID fall evenly with training?", text, draw)


def mistuning(frame: pd.DataFrame) -> Answer:
    """What half and twice the learning rate cost, in rFID and in the exponent of the same four cells."""
    keys = [*CELL, "learning_rate", "bits_per_pixel"]
    tuned = over_seeds(grid(frame), keys)
    others = analysis.load_results(HERE / "mistuning.parquet")
    pairs = others.merge(tuned, on=[*CELL, "bits_per_pixel"], suffixes=("", "_tuned"))
    pairs = pairs.assign(times=(pairs["learning_rate"] / pairs["learning_rate_tuned"]).round(2))
    pairs = pairs.sort_values("bits_per_pixel")
    cost, slopes = {}, {}
    for times, part in pairs.groupby("times"):
        cost[times] = np.expm1(mean_interval(np.log(part["rfid"].to_numpy(float) / part["rfid_tuned"].to_numpy(float))))
        rate = np.log(part["bits_per_pixel"].to_numpy(float))
        slopes[times] = -np.polyfit(rate, np.log(part["rfid"].to_numpy(float)), 1)[0]
        slopes[1.0] = -np.polyfit(rate, np.log(part["rfid_tuned"].to_numpy(float)), 1)[0]
    listed = " and ".join(
        f"{'half' if times < 1 else 'twice'} the rate changes rFID by {one[0]:+.0%} [{one[1]:+.0%}, {one[2]:+.0%}]"
        for times, one in cost.items()
    )
    count = pairs["times"].value_counts().max()
    text = (
        f"Over {count} cells {listed}, and the exponent in bits per pixel of these cells is {slopes[0.5]:.2f} and "
        f"{slopes[2.0]:.2f} instead of {slopes[1.0]:.2f}."
    )

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for times, part in pairs.groupby("times"):
            axis.plot(part["bits_per_pixel"], part["rfid"], "o", label=f"{times:g} times the rate")
        axis.plot(part["bits_per_pixel"], part["rfid_tuned"], "ks", label="the rate of the formula")
        name_axes(axis, "bits per pixel", "rFID")
        axis.legend(fontsize="x-small")

    return Answer("What does a wrong learning rate cost?", text, draw)


def predictions(frame: pd.DataFrame) -> Answer:
    """How what predict.py wrote down came out."""
    later = frame[frame["sweep"] == "tokenizer-predictions"]
    scores = predict.scored(later)
    names = {"law": "the laws", "naive": "a naive law of bits per pixel", "forest": "a random forest"}
    inside = {str(by): round(row["inside"] * row["cells"]) for by, row in scores.iterrows()}
    others = "; ".join(
        f"{names[str(by)]} {row['log_rmse']:.2f} and {row['log_score']:.2f}" for by, row in scores.iterrows()
    )
    text = (
        f"Of {scores['cells'].max():.0f} cells whose rFID was written down before they were trained, {inside['law']} "
        f"lie within the 95 % intervals of the laws, {inside['naive']} within those of {names['naive']} and "
        f"{inside['forest']} within those of {names['forest']}. Log-RMSE and log score: {others}."
    )
    written = pd.read_csv(HERE / "predictions.csv")

    def draw(figure: Figure) -> None:
        for axis, (name, label) in zip(figure.subplots(1, 3, sharex=True, sharey=True), names.items(), strict=True):
            one = written.rename(columns={name: "predicted", f"{name}_low": "low", f"{name}_high": "high"})
            found = analysis.check_predictions(one, later, predict.COLUMNS).dropna(subset="measured")
            for centre, low, high, measured in found[["predicted", "low", "high", "measured"]].itertuples(index=False):
                axis.errorbar(measured, centre, [[centre - low], [high - centre]], fmt="o", ms=4, color="C0", capsize=2)
            ends = [found["measured"].min() / 1.2, found["measured"].max() * 1.2]
            axis.plot(ends, ends, color="0.6", lw=0.8)
            name_axes(axis, "measured rFID", "predicted rFID" if axis.get_subplotspec().is_first_col() else "")
            axis.set_title(label, fontsize="small")

    return Answer("Did the predictions hold?", text, draw)

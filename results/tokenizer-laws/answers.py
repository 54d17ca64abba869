"""The questions of this study, each answered from its tables: a sentence and a figure.

    python results/tokenizer-laws/answers.py            # prints the answers and writes them into the pages
    python results/tokenizer-laws/answers.py --figures  # and draws the figures (make figures does)

The notebook 11_tokenizer_laws shows the same answers and figures, with the tables behind them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from beside import mistuning, predictions, smoothness
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from seeds import seeds
from study import (
    ARMS,
    BITS,
    BPP,
    CELL,
    HERE,
    LONGEST,
    STEPS,
    WIDTH,
    Answer,
    bars,
    equal_flops,
    grid,
    mean_interval,
    name_axes,
    over_seeds,
    parameter,
    resampled,
    shades,
    slopes,
    span,
    table,
    words,
)

from gsq import analysis
from gsq.analysis.figures.style import save_picture, style


def training(frame: pd.DataFrame) -> Answer:
    """Question 1. All cells have all lengths, so slopes over ln(images) are also those of one law of everything."""
    rows = grid(frame, None)
    rows = rows[rows["seed"] == 0]
    cells = (
        rows.pivot_table(index=[*CELL, "bits_per_token", BPP], columns="steps", values="rfid").dropna().reset_index()
    )
    images = np.array([32 * steps for steps in STEPS])
    doublings = np.log2(images) - np.log2(images).mean()

    def exponents(places: np.ndarray) -> np.ndarray:
        """Of bits per pixel, and of f and bits in one law: by length, then the mean of a doubling and the last."""
        part = cells.iloc[places]
        of = np.vstack(
            [
                -slopes([part[BPP]], part[[*STEPS]]),
                slopes([part["downsample"], part["bits_per_token"]], part[[*STEPS]]) * [[1], [-1]],
            ]
        )
        return np.column_stack([of, of @ doublings / (doublings @ doublings), of[:, -1] - of[:, -2]])

    value, ends = resampled(len(cells), exponents)
    said = np.vectorize(lambda row, column: span(value[row, column], tuple(ends[:, row, column]), ".2f"))
    doubling, last = len(STEPS), len(STEPS) + 1
    settled = "settled" if ends[0, 0, last] <= 0 <= ends[1, 0, last] else "not settled"
    by_f, within = {}, {}
    for f, part in cells.groupby("downsample"):
        rates, rfid = part["bits_per_token"].to_numpy(float), part[[*STEPS]].to_numpy(float)
        by_f[f], low_high = resampled(len(part), lambda places, x=rates, y=rfid: -slopes([x[places]], y[places])[0])  # type: ignore[misc]
        within[f] = f"{by_f[f][0]:.2f} to {span(by_f[f][-1], tuple(low_high[:, -1]))} at f = {f}"
    text = (
        f"The exponent of rFID in bits per pixel grows from {said(0, 0)} after {images[0]:,} images to "
        f"{said(0, doubling - 1)} after {images[-1]:,}; the last doubling added {said(0, last)}, so it has {settled}. "
        f"In one law of f, the bits of a token and the training, a doubling adds {said(1, doubling)} to the exponent "
        f"of f and {said(2, doubling)} to that of the bits, which goes from {within[2]} and from "
        f"{within[8]}."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for steps, colour in zip(STEPS, shades(len(STEPS)), strict=True):
            left.plot(cells[BPP], cells[steps], "o", ms=3, color=colour, label=f"{32 * steps:,} images")
        name_axes(left, "bits per pixel", "rFID")
        left.legend(fontsize="x-small")
        bars(right, images, value[0, :doubling], ends[:, 0, :doubling], label="bits per pixel", color="k")
        for (f, one), colour in zip(by_f.items(), shades(3), strict=True):
            right.plot(images, one, ".-", color=colour, label=f"bits of a token, f = {f}")
        name_axes(right, "training images", "exponent", "x")
        right.legend(fontsize="x-small")

    return Answer("Does the exponent in bits per pixel grow with training, and where does it settle?", text, draw)


def variables(frame: pd.DataFrame) -> Answer:
    """Question 2."""
    rows = frame[frame["signature"].isin(grid(frame)["signature"])]
    same = rows[rows["probe"].eq("tiny")]
    names = [BPP, "effective_bits_per_pixel", "prior_bits_per_pixel"]

    logs = {name: np.log(same[name].to_numpy(float)) for name in (*names, "downsample", "rfid")}

    def scatter(places: np.ndarray) -> np.ndarray:
        """Standard deviation of ln rFID about a power law of each variable alone, and with f beside it."""
        left = []
        for columns in ([name, *more] for more in ([], ["downsample"]) for name in names):
            design = np.column_stack([np.ones(len(places)), *(logs[name][places] for name in columns)])
            about = logs["rfid"][places] - design @ np.linalg.lstsq(design, logs["rfid"][places], rcond=None)[0]
            left.append(np.sqrt(about @ about / (len(places) - design.shape[1])))
        return np.array(left)

    value, ends = resampled(len(same), scatter)
    count = len(names)
    listed = ", ".join(f"{span(value[i], tuple(ends[:, i]), '.0%')} ({words(name)})" for i, name in enumerate(names))
    with_f = ", ".join(f"{value[count + i]:.0%}" for i in range(count))
    text = (
        f"None absorbs the axes: over {len(same)} cells a power law of one variable leaves a scatter of {listed}; "
        f"with f beside it, {with_f}."
    )

    def draw(figure: Figure) -> None:
        axes = np.atleast_1d(figure.subplots(1, count, sharey=True))
        for axis, name in zip(axes, names, strict=True):
            for f, colour in zip((2, 4, 8), shades(3), strict=True):
                part = same[same["downsample"] == f]
                axis.plot(part[name], part["rfid"], "o", ms=3, color=colour, label=f"f = {f}")
            name_axes(axis, words(name), "rFID" if axis is axes[0] else "")
        axes[0].legend(fontsize="x-small")

    return Answer("Which variable absorbs the axes?", text, draw)


def quantizers(frame: pd.DataFrame) -> Answer:
    """Question 3."""
    gsq, pairs = matched(frame)
    fit = analysis.fit(pd.concat([gsq, pairs], ignore_index=True), f"rfid = A[quantizer] * {BITS}", bootstrap=0)
    found = analysis.arms(fit, "quantizer", "gsq", "bits_per_token")
    needs = {one.arm: (1 / one.factor, (1 / one.interval[1], 1 / one.interval[0])) for one in found.worths}
    shared = found.shared
    pooled = "" if shared is None else f", with shared exponents, whose test gives p = {shared.p:.2g}"
    means = {
        arm: np.exp(mean_interval(np.log(part["times"].to_numpy(float)))) for arm, part in pairs.groupby("quantizer")
    }
    same = {arm: (mean, (low, high)) for arm, (mean, low, high) in means.items()}

    def times(values: Mapping[str, tuple[float, tuple[float, float]]]) -> str:
        every = [
            f"{span(*values[arm])}{' times that of gsq' * (arm == 'rvq')} for {name}" for arm, name in ARMS.items()
        ]
        return f"{', '.join(every[:-1])} and {every[-1]}"

    text = (
        f"At the same f and bits ({pairs['quantizer'].value_counts().min()} cells of each), rFID is {times(same)}. For "
        f"the same rFID, the number of bits is {times(needs)}{pooled}."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for place, arm in enumerate(ARMS):
            for f, colour in zip((2, 4, 8), shades(3), strict=True):
                part = pairs[(pairs["quantizer"] == arm) & (pairs["downsample"] == f)]
                label = f"f = {f}" if place == 0 else None
                left.plot([place] * len(part), part["times"], "o", ms=3, color=colour, label=label)
            bars(left, [place + 0.25], [same[arm][0]], np.array([same[arm][1]]).T, color="k")
            bars(right, [place], [needs[arm][0]], np.array([needs[arm][1]]).T, color="k")
        for axis, label in ((left, "rFID at the same bits (gsq: 1)"), (right, "bits for the same rFID (gsq: 1)")):
            axis.axhline(1, color="0.6", lw=0.8)
            axis.set(xlim=(-0.5, len(ARMS) - 0.5))
            name_axes(axis, "", label, "y")
            axis.set_xticks(range(len(ARMS)), ARMS.values())
        left.legend(fontsize="x-small")

    return Answer("What is each quantizer worth in bits?", text, draw)


def matched(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """gsq's rows of D = 16 at an arm's f and bits; the arms' rows with ``times``, rFID over that of gsq's seeds."""
    keys = ["downsample", "bits_per_token"]
    arms = frame[frame["quantizer"].isin(ARMS) & (frame["steps"] == LONGEST)]
    gsq = grid(frame).query("latent_dim == 16").merge(arms[keys].drop_duplicates(), on=keys)
    pairs = arms.merge(over_seeds(gsq, keys), on=keys, suffixes=("", "_gsq"))
    return gsq, pairs.assign(times=pairs["rfid"] / pairs["rfid_gsq"])


def inexact(frame: pd.DataFrame) -> Answer:
    """Question 4."""
    keys = [*CELL, "width"]
    exact = over_seeds(grid(frame), keys, "usage")
    rough = frame[(frame["lookup"] == "bfloat16") & (frame["steps"] == LONGEST)][[*keys, "rfid", "usage"]]
    pairs = exact.merge(rough, on=keys, suffixes=("", "_bf16"))
    ratio = np.log(pairs["rfid_bf16"].to_numpy(float) / pairs["rfid"].to_numpy(float))
    cost = np.expm1(mean_interval(ratio))
    verdict = "Neither" if cost[1] < 0 < cost[2] else "It changes rFID"
    text = (
        f"{verdict}, as far as {len(pairs)} cells can tell: the bfloat16 look-up changes rFID by {cost[0]:+.0%} "
        f"[{cost[1]:+.0%}, {cost[2]:+.0%}], and mean usage is {pairs['usage_bf16'].mean():.0%} instead of "
        f"{pairs['usage'].mean():.0%}."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for axis, name in ((left, "rfid"), (right, "usage")):
            axis.plot(pairs[name], pairs[f"{name}_bf16"], "o")
            ends = [pairs[[name, f"{name}_bf16"]].min().min(), pairs[[name, f"{name}_bf16"]].max().max()]
            axis.plot(ends, ends, color="0.6", lw=0.8)
            axis.set(xlabel=f"{words(name)}, exact", ylabel=f"{words(name)}, bfloat16")

    return Answer("Does an inexact look-up cost rFID after real training, or only usage?", text, draw)


def dimensions(frame: pd.DataFrame) -> Answer:
    """Question 5."""
    rows = grid(frame)
    parts = {groups: rows[rows["groups"] == groups] for groups in (1, 8)}
    fits = {
        groups: analysis.fit(part, f"rfid = c * {BITS} * latent_dim^h", bootstrap=0) for groups, part in parts.items()
    }
    usage = {groups: part.groupby("latent_dim")["usage"].mean() for groups, part in parts.items()}
    said = [
        f"{what_d_does(*fit.profile_intervals['h'])} with G = {groups} (exponent of D {parameter(fit, 'h', '+.2f')}, "
        f"{len(parts[groups])} runs), whose mean usage is {usage[groups][8]:.0%} at D = 8 and "
        f"{usage[groups][64]:.0%} at D = 64"
        for groups, fit in fits.items()
    ]
    text = f"Larger D {said[0]}; it {said[1]}."

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for (groups, part), marker, colour in zip(parts.items(), "os", shades(2), strict=True):
            fit, place = fits[groups], part["latent_dim"] * (1.04 if groups == 8 else 0.96)
            # rFID over what f and the bits of a token explain, over the law's value at D = 8
            law = part["downsample"] ** fit.parameters["a"] * part["bits_per_token"] ** -fit.parameters["b"]
            about = part["rfid"] / law / fit.parameters["c"] / 8 ** fit.parameters["h"]
            left.plot(place, about, marker, ms=4, alpha=0.7, color=colour, label=f"G = {groups}")
            ends = np.array([8.0, 64.0])
            left.plot(ends, (ends / 8) ** fit.parameters["h"], lw=1, color=colour)
            right.plot(place, part["usage"], marker, ms=4, alpha=0.7, color=colour)
        name_axes(left, "D", "rFID over that of D = 8, by the law")
        name_axes(right, "D", "codebook usage", "x")
        for axis in (left, right):
            axis.set_xticks([8, 16, 32, 64], ["8", "16", "32", "64"])
        left.legend(fontsize="x-small")

    return Answer("Does larger D hurt at G = 1, and do groups cure it?", text, draw)


def what_d_does(low: float, high: float) -> str:
    return "raises rFID" if low > 0 else "lowers rFID" if high < 0 else "makes no difference to rFID that can be told"


def budgets(frame: pd.DataFrame) -> Answer:
    """Question 6."""
    rows = grid(frame, None, None)
    rows = rows[rows["downsample"].isin([4, 8]) & (rows["seed"] == 0)].reset_index(drop=True)
    fit = analysis.fit(
        rows,
        f"rfid = {BITS} * (p * width^(-w) + q * images_seen^(-g))",
        bounds=dict.fromkeys(("p", "q", "w", "g"), (0.0, np.inf)),
        bootstrap=200,
    )
    # FLOPs of an image, by width, at f = 4: a constant (losses), and the networks' square.
    four = rows[(rows["downsample"] == 4) & (rows["latent_dim"] == 16)]
    k2, k0 = np.polyfit(four["width"] ** 2, four["train_flops"] / four["images_seen"], 1)
    cost = f"images_seen * ({k0:.4g} + {k2:.4g} * width^2)"
    same = four[four["bits_per_token"] == 16]
    ends = [same[(same["width"] == WIDTH) & (same["steps"] == steps)]["train_flops"].item() for steps in STEPS]
    best = analysis.allocate(fit, budgets=ends[-2:], cost=cost, at={"downsample": 4.0, "bits_per_token": 16.0})
    asked = [
        f"at {point.budget / 1e12:.1f} training TFLOPs for width {span(width.value, width.interval, '.1f')} and "
        f"{span(images.value, images.interval, ',.0f')} images"
        for point in best.points
        for width, images in [(point.columns["width"], point.columns["images_seen"])]
    ]
    pairs = equal_flops(grid(frame, None, None))
    ratios = (pairs["rfid"] / pairs["rfid_half"]).to_numpy(float)
    gain = np.exp(mean_interval(np.log(ratios)))
    text = (
        f"At equal FLOPs, width {WIDTH} with half the images has {gain[0]:.2f} [{gain[1]:.2f}, {gain[2]:.2f}] times "
        f"the rFID of width {WIDTH // 2}, and is better in {(ratios < 1).sum()} of {len(ratios)} pairs. The law "
        f"agrees: at f = 4 and 16 bits it asks {' and '.join(asked)}. Bits cost next to no FLOPs."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for width, colour in zip(sorted(same["width"].unique()), shades(3), strict=False):
            part = same[same["width"] == width].sort_values("train_flops")
            left.plot(part["train_flops"], part["rfid"], "o-", color=colour, label=f"width {width:.0f}")
        curve = np.array([(one.budget, one.predicted[0]) for one in best.curve]).T
        left.plot(*curve, "k--", lw=1, label="best by the law")
        name_axes(left, "training FLOPs", "rFID at f = 4, 16 bits a token")
        left.legend(fontsize="x-small")
        right.plot(pairs["rfid_half"], pairs["rfid"], "o", ms=4)
        ends = [pairs["rfid"].min() / 1.1, pairs["rfid_half"].max() * 1.1]
        right.plot(ends, ends, color="0.6", lw=0.8)
        name_axes(right, f"rFID of width {WIDTH // 2}, twice the images", f"rFID of width {WIDTH}")

    return Answer("At a fixed compute budget, how should FLOPs go to width, steps and rate?", text, draw)


def learnability(frame: pd.DataFrame) -> Answer:
    """Question 7."""
    sizes = ("tiny", "small")
    parts = {size: frame[frame["probe"] == size].sort_values("prior_bits_per_pixel") for size in sizes}
    orders, best = [], {}
    for size, part in parts.items():
        found = analysis.generation(part)
        values = part[["rfid", "gfid"]].to_numpy(float)
        rank, ends = resampled(len(part), lambda places, of=values: spearmanr(of[places]).statistic)  # type: ignore[misc]
        correlation = span(float(rank), (ends[0], ends[1]))
        orders.append(f"{len(found.disagree)} of {found.pairs} with the {size} probe (rank correlation {correlation})")
        best[size] = float(part["prior_bits_per_pixel"].iloc[int(part["gfid"].argmin())])
    rates = {size: part["prior_bits_per_pixel"].min() for size, part in parts.items()}
    at = " and ".join(f"at {value:.2f} prior bits per pixel for the {size} probe" for size, value in best.items())
    if best == rates:
        at += ", the lowest rates measured, so that no optimum shows"
    text = f"They disagree in most pairs of cells: {' and '.join(orders)}. gFID is lowest {at}."

    def draw(figure: Figure) -> None:
        for axis, (size, part) in zip(
            np.atleast_1d(figure.subplots(1, len(sizes), sharey=True)), parts.items(), strict=True
        ):
            axis.plot(part["prior_bits_per_pixel"], part["gfid"], "o", ms=4, label="gFID")
            axis.plot(part["prior_bits_per_pixel"], part["rfid"], "ks", ms=3, label="rFID")
            name_axes(axis, f"prior bits per pixel, {size} probe", "FID" if size == sizes[0] else "")
            axis.legend(fontsize="x-small")

    return Answer("Where do rFID and gFID disagree, and does gFID's optimum move with the probe's size?", text, draw)


QUESTIONS = (training, variables, quantizers, inexact, dimensions, budgets, learnability, seeds)
BESIDE = (smoothness, mistuning, predictions)


FINDINGS = (training, seeds, predictions)


@cache
def answered(question: Callable[[pd.DataFrame], Answer]) -> Answer:
    return question(table())


def listed(questions: Sequence[Callable[[pd.DataFrame], Answer]], folder: str = "") -> str:
    """A numbered list of the answers, each with its figure: the first sentences alone for a page of another folder."""
    parts = []
    for number, question in enumerate(questions, 1):
        answer = answered(question)
        said = answer.finding if folder else f"**{answer.question}** {answer.text}"
        parts.append(f"{number}. {said}\n\n    ![{answer.question}]({folder}{question.__name__}.png)\n")
    return "\n".join(parts)


def block() -> str:
    """The answers as this study's README.md prints them."""
    return listed((*QUESTIONS, *BESIDE))


def findings() -> str:
    """The three findings as results/README.md prints them."""
    return listed(FINDINGS, f"{HERE.name}/")


def write(page: Path, name: str, text: str) -> None:
    """Put ``text`` between the page's comments ``<!-- name -->`` and ``<!-- end of name -->``."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    page.write_text(f"{before}{start}{text}{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", action="store_true", help="draw the figures, too")
    arguments = parser.parse_args()
    write(HERE / "README.md", "answers", block())
    write(HERE.parent / "README.md", "findings", findings())
    print(block())
    if arguments.figures:
        for question in (*QUESTIONS, *BESIDE):
            with style():
                figure = Figure(figsize=(7, 3.4), layout="constrained")
                answered(question).draw(figure)
                save_picture(figure, HERE / f"{question.__name__}.png")


if __name__ == "__main__":
    main()

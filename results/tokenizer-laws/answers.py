"""The questions of this study, each answered from its tables: a sentence and a figure.

    python results/tokenizer-laws/answers.py            # prints the answers and writes them into README.md
    python results/tokenizer-laws/answers.py --figures  # and draws the figures (make figures does)

The notebook 11_tokenizer_laws shows the same answers and figures, with the tables behind them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np
import pandas as pd
from beside import mistuning, predictions, smoothness
from matplotlib.figure import Figure
from scipy.stats import norm
from study import (
    ARMS,
    AXES,
    BITS,
    HERE,
    LONGEST,
    STEPS,
    Answer,
    bars,
    grid,
    mean_interval,
    name_axes,
    parameter,
    shades,
    span,
    table,
    words,
)

from gsq import analysis
from gsq.analysis.figures.style import save, style


def training(frame: pd.DataFrame) -> Answer:
    """Question 1."""
    fits = {steps: analysis.fit(grid(frame, steps), "power_law_bpp", bootstrap=0) for steps in STEPS}
    rows = grid(frame, None)
    grows = analysis.fit(
        rows,
        f"rfid = c * {BITS.replace('-b)', '-b - h * log(images_seen / 20480))')} * images_seen^(-g)",
        bootstrap=0,
    )
    doubling = np.log(2)
    low, high = grows.profile_intervals["h"]
    first, last = (parameter(fits[steps], "alpha") for steps in (STEPS[0], LONGEST))
    text = (
        f"The exponent in bits per pixel goes from {first} after {32 * STEPS[0]:,} images to {last} after "
        f"{32 * LONGEST:,}; each doubling of the training changes that of the bits of a token by "
        f"{span(doubling * grows.parameters['h'], (doubling * low, doubling * high), '+.3f')}"
        + (", so it has not settled." if low > 0 or high < 0 else ", so no change can be told.")
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        images = [32 * steps for steps in STEPS]
        for steps, colour in zip(STEPS, shades(len(STEPS)), strict=True):
            part = grid(frame, steps)
            left.plot(part["bits_per_pixel"], part["rfid"], "o", ms=3, color=colour, label=f"{32 * steps:,} images")
        name_axes(left, "bits per pixel", "rFID")
        left.legend(fontsize="x-small")
        value = [fits[steps].parameters["alpha"] for steps in STEPS]
        ends = np.array([fits[steps].profile_intervals["alpha"] for steps in STEPS]).T
        bars(right, images, value, ends)
        name_axes(right, "training images", "exponent of bits per pixel", "x")

    return Answer("Does the exponent in bits per pixel grow with training, and where does it settle?", text, draw)


def variables(frame: pd.DataFrame) -> Answer:
    """Question 2."""
    rows = frame[frame["signature"].isin(grid(frame)["signature"])]
    probed = rows[rows["probe"].eq("tiny")] if "probe" in rows else rows.iloc[:0]
    names = ["bits_per_pixel", "effective_bits_per_pixel"] + (["prior_bits_per_pixel"] if len(probed) else [])
    same = probed if len(probed) else grid(frame)
    scatter = {name: analysis.fit(same, f"rfid = c * {name}^(-alpha)", bootstrap=0).log_rmse for name in names}
    with_f = {
        name: analysis.fit(same, f"rfid = c * downsample^a * {name}^(-alpha)", bootstrap=0).log_rmse for name in names
    }
    best = min(scatter, key=lambda name: scatter[name])
    listed = ", ".join(f"{words(name)} {scatter[name]:.1%} ({with_f[name]:.1%} with f beside it)" for name in names)
    text = (
        f"None absorbs the axes: over {len(same)} cells a power law of one variable alone leaves {listed}; "
        f"{words(best)} does best."
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(names))
        for axis, name in zip(np.atleast_1d(axes), names, strict=True):
            for f, colour in zip((2, 4, 8), shades(3), strict=True):
                part = same[same["downsample"] == f]
                axis.plot(part[name], part["rfid"], "o", ms=3, color=colour, label=f"f = {f}")
            name_axes(axis, words(name), "rFID")
        np.atleast_1d(axes)[0].legend(fontsize="x-small")

    return Answer("Which variable absorbs the axes?", text, draw)


def quantizers(frame: pd.DataFrame) -> Answer:
    """Question 3."""
    arms = frame[frame["quantizer"].isin(ARMS) & (frame["steps"] == LONGEST)]
    rows = pd.concat([grid(frame), arms], ignore_index=True)
    fit = analysis.fit(rows, f"rfid = A[quantizer] * {BITS}")
    found = analysis.arms(fit, "quantizer", "gsq", "bits_per_token")
    needs = {one.arm: (1 / one.factor, (1 / one.interval[1], 1 / one.interval[0])) for one in found.worths}
    listed = ", ".join(f"{ARMS[arm]} needs {span(*needs[arm])}" for arm in ARMS if arm in needs)
    shared = found.shared
    pooled = "" if shared is None else f" (shared exponents: p = {shared.p:.2g})"
    text = f"For the same rFID, in times gsq's bits, {listed}{pooled}."

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        names = [arm for arm in ARMS if arm in needs]
        bars(axis, range(len(names)), [needs[arm][0] for arm in names], np.array([needs[arm][1] for arm in names]).T)
        axis.axhline(1, color="0.6", lw=0.8)
        axis.set_xticks(range(len(names)), [ARMS[arm] for arm in names])
        axis.set(ylabel="bits needed, in gsq's", xlim=(-0.5, len(names) - 0.5))

    return Answer("What is each quantizer worth in bits?", text, draw)


def inexact(frame: pd.DataFrame) -> Answer:
    """Question 4."""
    keys = list(AXES)
    exact = grid(frame)[[*keys, "rfid", "usage"]]
    rough = frame[(frame["lookup"] == "bfloat16") & (frame["steps"] == LONGEST)][[*keys, "rfid", "usage"]]
    pairs = exact.merge(rough, on=keys, suffixes=("", "_bf16"))
    ratio = np.log(pairs["rfid_bf16"].to_numpy(float) / pairs["rfid"].to_numpy(float))
    cost = np.expm1(mean_interval(ratio))
    text = (
        f"Over {len(pairs)} pairs the bfloat16 look-up changes rFID by {cost[0]:+.1%} [{cost[1]:+.1%}, {cost[2]:+.1%}] "
        f"and codebook usage from {pairs['usage'].mean():.0%} to {pairs['usage_bf16'].mean():.0%}."
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
    law = f"rfid = c * {BITS} * latent_dim^h"
    rows = grid(frame)
    fits = {1: analysis.fit(rows[rows["groups"] == 1], law, bootstrap=0)}
    fits[4] = analysis.fit(rows[rows["groups"] == 4], law, bootstrap=0)
    low, high = fits[1].profile_intervals["h"]
    verdict = "hurts" if low > 0 else "helps" if high < 0 else "makes no difference that can be told"
    usage = {groups: rows[(rows["groups"] == groups) & (rows["latent_dim"] == 64)]["usage"].mean() for groups in fits}
    text = (
        f"At G = 1 larger D {verdict}: its exponent is {parameter(fits[1], 'h', '+.3f')}, and "
        f"{parameter(fits[4], 'h', '+.3f')} at G = 4; usage at D = 64 is {usage[1]:.0%} and {usage[4]:.0%}."
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2)
        for axis, name in zip(axes, ("rfid", "usage"), strict=True):
            for groups, marker in ((1, "o"), (4, "s")):
                part = rows[(rows["groups"] == groups)]
                value = part[name]
                if name == "rfid":  # without what f and the bits of a token explain
                    fit = fits[groups]
                    value = value / part["downsample"] ** fit.parameters["a"]
                    value = value * part["bits_per_token"] ** fit.parameters["b"]
                axis.plot(part["latent_dim"], value, marker, ms=4, label=f"G = {groups}", alpha=0.7)
            name_axes(axis, "D", "rFID, f and bits divided out" if name == "rfid" else "usage", "x")
            axis.set_xticks([8, 16, 32, 64], ["8", "16", "32", "64"])
        axes[0].legend(fontsize="x-small")

    return Answer("Does larger D hurt at G = 1, and do groups cure it?", text, draw)


def budgets(frame: pd.DataFrame) -> Answer:
    """Question 6."""
    rows = grid(frame, None, None)
    rows = rows[rows["downsample"].isin([4, 8])].reset_index(drop=True)
    fit = analysis.fit(
        rows,
        f"rfid = c * {BITS} + p * width^(-w) + q * images_seen^(-g)",
        bounds=dict.fromkeys(("p", "q", "w", "g"), (0.0, np.inf)),
    )
    # FLOPs of an image, by width, at f = 4: a constant (losses), and the networks' square.
    four = rows[(rows["downsample"] == 4) & (rows["latent_dim"] == 16)]
    k2, k0 = np.polyfit(four["width"] ** 2, four["train_flops"] / four["images_seen"], 1)
    cost = f"images_seen * ({k0:.4g} + {k2:.4g} * width^2)"
    held = {"downsample": 4.0, "bits_per_token": 16.0}
    most = float(four["train_flops"].max())
    best = analysis.allocate(fit, budgets=(most / 8, most), cost=cost, at=held)
    point = best.points[-1]
    columns = {name: span(one.value, one.interval, ".3g") for name, one in point.columns.items()}
    same = four[four["bits_per_token"] == 16]
    ran = same.iloc[int(np.argmin(same["rfid"]))]
    text = (
        f"Bits cost no FLOPs, so the rate is free; at {most:.2g} training FLOPs and f = 4 the law asks for width "
        f"{columns['width']} and {columns['images_seen']} images, and the best cell of 16 bits a token that ran has "
        f"width {ran['width']:.0f} and {ran['images_seen']:,.0f} images."
    )

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for width, colour in zip(sorted(same["width"].unique()), shades(3), strict=False):
            part = same[(same["width"] == width) & (same["seed"] == 0)].sort_values("train_flops")
            axis.plot(part["train_flops"], part["rfid"], "o-", color=colour, label=f"width {width:.0f}")
        curve = np.array([(one.budget, one.predicted[0]) for one in best.curve]).T
        axis.plot(*curve, "k--", lw=1, label="best by the law")
        name_axes(axis, "training FLOPs", "rFID")
        axis.legend(fontsize="x-small")

    return Answer("At a fixed compute budget, how should FLOPs go to width, steps and rate?", text, draw)


def learnability(frame: pd.DataFrame) -> Answer:
    """Question 7."""
    sizes = [size for size in ("tiny", "small") if "probe" in frame and frame["probe"].eq(size).any()]
    parts = {size: frame[frame["probe"] == size] for size in sizes}
    found = {size: analysis.generation(part) for size, part in parts.items()}
    optima = {size: analysis.fit(part, "tradeoff", bootstrap=0) for size, part in parts.items()}
    listed = []
    for size in sizes:
        fit, rate = optima[size], parts[size]["prior_bits_per_pixel"]
        inside = "b" not in fit.undetermined and rate.min() < fit.parameters["b"] < rate.max()
        best = f"its best at {parameter(fit, 'b')} prior bits per pixel"
        where = best if inside else "no best within the rates measured"
        listed.append(
            f"the {size} probe's orders by rFID and gFID differ in {len(found[size].disagree)} of {found[size].pairs} "
            f"pairs of cells, and gFID has {where}"
        )
    text = "; ".join(listed)
    text = text[:1].upper() + text[1:] + "."

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for size, marker in zip(sizes, "os", strict=False):
            part = parts[size].sort_values("prior_bits_per_pixel")
            axis.plot(part["prior_bits_per_pixel"], part["gfid"], marker, ms=4, label=f"gFID, probe {size}")
        axis.plot(part["prior_bits_per_pixel"], part["rfid"], "k.", label="rFID")
        name_axes(axis, "prior bits per pixel", "rFID and gFID")
        axis.legend(fontsize="x-small")

    return Answer("Where do rFID and gFID disagree, and does gFID's optimum move with the probe's size?", text, draw)


def seeds(frame: pd.DataFrame) -> Answer:
    """Question 8."""
    noise = analysis.seed_noise(grid(frame))
    claims = conclusions(frame)
    counts = np.array([1, 2, 3, 5])
    log = np.log(frame["rfid"].to_numpy(float))
    wrong = {}
    for name, weights in claims.items():
        spread = noise.log_sd * np.sqrt(np.sum(weights**2) / counts)
        wrong[name] = norm.sf(abs(log @ weights) / spread)
    fragile = [name for name in claims if wrong[name][0] > 0.05]
    text = (
        f"Seeds scatter by {noise.log_sd:.1%} [{noise.low:.1%}, {noise.high:.1%}] against {np.expm1(noise.spread):.0%} "
        f"between cells; other seeds would reverse {len(fragile)} of {len(claims)} conclusions in more than one study "
        "of twenty" + (f" ({', '.join(fragile)})." if fragile else ".")
    )

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for name, shares in wrong.items():
            axis.plot(counts, shares, "o-", label=name)
        axis.axhline(0.05, color="0.6", lw=0.8)
        axis.set(xlabel="seeds of each cell", ylabel="share of studies that conclude the opposite", xticks=counts)
        axis.legend(fontsize="x-small")

    return Answer("How large is seed noise, and how many seeds would have changed a conclusion?", text, draw)


def conclusions(frame: pd.DataFrame) -> Mapping[str, np.ndarray]:
    """Weights of ln rfid, row by row, for each conclusion: it rests on the sign of the weighted sum."""
    rows = frame.assign(place=range(len(frame)))
    longest = grid(rows)

    def weights(part: pd.DataFrame, values: np.ndarray) -> np.ndarray:
        return np.bincount(part["place"], values, minlength=len(frame))

    def slope(part: pd.DataFrame, *names: str) -> np.ndarray:
        """The weights of the last column's exponent in a least-squares fit of ln rfid."""
        design = np.column_stack([np.ones(len(part)), *(np.log(part[name].to_numpy(float)) for name in names)])
        return weights(part, np.linalg.pinv(design)[-1])

    one = longest[longest["groups"] == 1]
    found = {
        "the exponent changes with training": slope(longest, "bits_per_pixel")
        - slope(grid(rows, STEPS[0]), "bits_per_pixel"),
        "larger D matters at G = 1": slope(one, "downsample", "bits_per_token", "latent_dim"),
    }
    for arm, name in ARMS.items():
        arms = rows[(rows["quantizer"] == arm) & (rows["steps"] == LONGEST)]
        partners = longest[longest["latent_dim"] == 16].drop_duplicates(["downsample", "bits_per_token"])
        pairs = arms.merge(partners, on=["downsample", "bits_per_token"], suffixes=("", "_gsq"))
        if len(pairs):
            share = np.full(len(pairs), 1 / len(pairs))
            found[f"{name} against gsq"] = weights(pairs, share) - weights(
                pairs.drop(columns="place").rename(columns={"place_gsq": "place"}), share
            )
    return found


QUESTIONS = (training, variables, quantizers, inexact, dimensions, budgets, learnability, seeds)
BESIDE = (smoothness, mistuning, predictions)


def block() -> str:
    """The answers as README.md prints them."""
    lines = []
    for number, question in enumerate((*QUESTIONS, *BESIDE), 1):
        answer = question(table())
        lines.append(f"{number}. **{answer.question}** {answer.text}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", action="store_true", help="draw the figures, too")
    arguments = parser.parse_args()
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("<!-- answers -->\n")
    _, _, after = rest.partition("<!-- end of answers -->")
    text = block()
    print(text)
    readme.write_text(f"{before}<!-- answers -->\n{text}\n<!-- end of answers -->{after}", encoding="utf-8")
    if arguments.figures:
        for question in (*QUESTIONS, *BESIDE):
            with style():
                figure = Figure(figsize=(7, 3.4), layout="constrained")
                question(table()).draw(figure)
                save(figure, HERE / f"{question.__name__}.png")


if __name__ == "__main__":
    main()

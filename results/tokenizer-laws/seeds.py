"""How large seed noise is, and which conclusions other seeds would have reversed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import norm
from study import ARMS, BPP, CELL, LONGEST, STEPS, Answer, equal_flops, grid, name_axes, shades

from gsq import analysis


def seeds(frame: pd.DataFrame) -> Answer:
    """Question 8."""
    rows = grid(frame)
    noise = analysis.seed_noise(rows)
    by_f = {f: analysis.seed_noise(rows[rows["downsample"] == f]).log_sd for f in (8, 4, 2)}
    sd = frame["downsample"].map(by_f).to_numpy(float)
    claims = conclusions(frame)
    counts = np.array([1, 2, 3, 5])
    log = np.log(frame["rfid"].to_numpy(float))
    wrong = {}
    for name, weights in claims.items():
        spread = np.sqrt(np.sum((weights * sd) ** 2) / counts)
        wrong[name] = norm.sf(abs(log @ weights) / spread)
    fragile = {count: [name for name in claims if wrong[name][i] > 0.05] for i, count in enumerate(counts)}
    named = f" ({', '.join(fragile[1])})" if fragile[1] else ""
    text = (
        f"Seeds scatter rFID by {noise.log_sd:.0%} [{noise.low:.0%}, {noise.high:.0%}]: by {by_f[8]:.0%} at f = 8, "
        f"{by_f[4]:.0%} at f = 4 and {by_f[2]:.0%} at f = 2, where rFID falls fastest. Other seeds would reverse "
        f"{len(fragile[1])} of {len(claims)} conclusions in more than one study of twenty{named}; with three seeds of "
        f"every cell, {len(fragile[3])}."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        repeated = rows.groupby([*CELL], as_index=False).filter(lambda one: len(one) > 2)
        cells = sorted(repeated.groupby([*CELL]), key=lambda one: float(one[1]["rfid"].mean()))
        colours = dict(zip((2, 4, 8), shades(3), strict=True))
        for place, ((f, *_), part) in enumerate(cells):
            left.plot([place] * len(part), part["rfid"], "o-", ms=4, lw=1, color=colours[f])
        for f, colour in colours.items():
            left.plot([], [], "o", color=colour, label=f"f = {f}")
        name_axes(left, "cell", "rFID of three seeds", "y")
        left.set_xticks([])
        left.legend(fontsize="x-small")
        for name, shares in wrong.items():
            right.plot(counts, shares, ".--" if name.endswith("gsq") else ".-", label=name)
        right.axhline(0.05, color="0.6", lw=0.8)
        right.set(xlabel="seeds of each cell", ylabel="share of studies that say the opposite", xticks=counts)
        right.legend(fontsize="x-small")

    return Answer("How large is seed noise, and how many seeds would have changed a conclusion?", text, draw)


def conclusions(frame: pd.DataFrame) -> Mapping[str, np.ndarray]:
    """Weights of ln rfid, row by row, for each conclusion: it rests on the sign of the weighted sum.

    The seeds' scatter is that of the longest training, for shorter ones, too.
    """
    rows = frame.assign(place=range(len(frame)))
    longest = grid(rows)

    def weights(part: pd.DataFrame, values: np.ndarray) -> np.ndarray:
        return np.bincount(part["place"], values, minlength=len(frame))

    def slope(part: pd.DataFrame, *names: str) -> np.ndarray:
        """The weights of the last column's exponent in a least-squares fit of ln rfid."""
        design = np.column_stack([np.ones(len(part)), *(np.log(part[name].to_numpy(float)) for name in names)])
        return weights(part, np.linalg.pinv(design)[-1])

    first = grid(rows, STEPS[0])
    last = longest[longest["seed"] == 0].merge(first[[*CELL]], on=[*CELL])
    eight = longest[longest["groups"] == 8]
    pairs = equal_flops(grid(rows, None, None))
    share = np.full(len(pairs), 1 / len(pairs))
    found = {
        "the exponent grows with training": slope(last, BPP) - slope(first, BPP),
        "larger D raises rFID at G = 8": slope(eight, "downsample", "bits_per_token", "latent_dim"),
        "width before training": weights(pairs, share)
        - weights(pairs.drop(columns="place").rename(columns={"place_half": "place"}), share),
    }
    keys = ["downsample", "bits_per_token"]
    partners = longest.loc[longest["latent_dim"] == 16, [*keys, "place"]]
    for arm, name in ARMS.items():
        arms = rows.loc[(rows["quantizer"] == arm) & (rows["steps"] == LONGEST), [*keys, "place"]]
        pairs = arms.merge(partners, on=keys, suffixes=("", "_gsq"))
        share = (1 / pairs["place"].nunique() / pairs.groupby("place")["place"].transform("size")).to_numpy(float)
        found[f"{name} against gsq"] = weights(pairs[["place"]], share) - weights(
            pairs[["place_gsq"]].rename(columns={"place_gsq": "place"}), share
        )
    return found

"""The committed study on images from Debian packages hangs together."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd

from gsq import analysis
from gsq.sweeps import load_spec

STUDY = Path(__file__).parents[2] / "results" / "photos-scaling"


def test_images_are_distinct_sources_of_the_packages_named() -> None:
    manifest, packages = pd.read_csv(STUDY / "manifest.csv"), pd.read_csv(STUDY / "packages.csv")
    assert manifest["sha256"].is_unique and len(manifest) >= 3000
    assert (
        manifest["package"].value_counts().sort_index() == packages.set_index("package")["sources"].sort_index()
    ).all()
    images = manifest.groupby("split")["images"].sum()
    assert images["train"] == packages["train_images"].sum() and images["val"] == packages["val_images"].sum()
    assert packages["licence"].notna().all() and packages["version"].notna().all()


def test_near_duplicates_are_found_whatever_their_size_and_tint() -> None:
    build = runpy.run_path(str(STUDY / "build_data.py"))
    rng = np.random.default_rng(0)
    from PIL import Image

    def picture(seed: int) -> Image.Image:
        small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
        return Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC)

    def tinted(image: Image.Image) -> Image.Image:
        values = np.asarray(image) * np.array([0.9, 0.7, 0.8]) + rng.normal(0, 4, (256, 256, 3))
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).resize((150, 150))

    package = build["PACKAGES"][0]
    images = [picture(0), picture(1), tinted(picture(0)), picture(2)]
    sources = [build["read"]((package, f"{i}.png", build["png"](image))) for i, image in enumerate(images)]
    kept, _ = build["distinct"](sources)
    assert [source.path for source in kept] == ["0.png", "1.png", "3.png"]
    assert all(len(source.squares) == 1 for source in kept), "too small to be cut"
    assert len(build["squares"](Image.new("RGB", (1920, 1080)), True)) == 6


def test_every_planned_cell_is_in_the_table_and_the_large_half_was_predicted(tmp_path: Path) -> None:
    spec = load_spec(STUDY / "photos-scaling.yaml")
    frame = analysis.load_results(STUDY / "photos-scaling.parquet")
    axes = ["downsample", "latent_dim", "groups", "codebook_size", "seed"]
    assert len(spec.cases) == len(frame) >= 60 and set(frame["state"]) == {"done"}
    written = pd.read_csv(STUDY / "predictions.csv")
    large = frame[(frame["codebook_size"] > 1024) | (frame["bits_per_pixel"] > 2.5)]
    precision = "quantizer.lookup_precision"
    checked = analysis.check_predictions(
        written, frame.assign(**{precision: frame[precision].fillna("exact")}), [*axes, precision]
    )
    assert len(checked) == len(large) >= 6 and checked["measured"].notna().all()
    assert ((checked["low"] < checked["predicted"]) & (checked["predicted"] < checked["high"])).all()

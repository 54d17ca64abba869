"""The report page: what it says equals the table, it fetches nothing, and text from tables stays text."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_pages import EVIL, Page

from gsq.analysis import AnalysisError, Options, load_results
from gsq.analysis.reporting.page import page, write_page
from gsq.analysis.reporting.report import Report, make_report

QUICK = Options(bootstrap=0, starts=8)


@pytest.fixture(scope="module")
def quickstart() -> Report:
    frame = load_results(Path(__file__).parents[2] / "results" / "quickstart.parquet")
    return make_report(frame, "quickstart", options=QUICK)


def test_the_table_on_the_page_is_that_of_the_parquet(quickstart: Report) -> None:
    read = Page(page(quickstart))
    frame = load_results(Path(__file__).parents[2] / "results" / "quickstart.parquet").set_index("signature")
    assert len(read.rows) == len(frame) == 12
    checked = 0
    for row in read.rows:
        cell = frame.loc[row["signature"]]
        for name, shown in row.items():
            value = cell.get(name)
            if isinstance(value, int | float | np.number) and not isinstance(value, bool):
                assert float(shown) == float(value) if shown else pd.isna(value), name
                checked += 1
    assert checked > 12 * 25 and {"rfid", "train_flops", "group_dim", "state"} <= set(read.keys)


def test_nothing_is_fetched_and_everything_is_on_it(quickstart: Report) -> None:
    text = page(quickstart)
    read = Page(text)
    assert all(address.startswith(("data:image/", "#")) for address in read.addresses)
    assert not {"link", "iframe", "object", "embed", "base"} & set(read.tags) and read.tags.count("script") == 1
    assert "default-src 'none'" in text and not re.search(r"@import|url\(", text)
    for section in ("Status", "Results", "Figures", "Laws", "Provenance"):
        assert section in read.texts
    titles = ["Scaling", "Collapse on bits per pixel", "Iso-rFID contours", "Group decomposition", "Codebook usage"]
    assert [one.title for one in quickstart.figures] == [*titles, "Pareto front", "Report card of power_law_bpp"]
    for one in quickstart.figures:
        assert b"<svg" in base64.b64decode(one.url.split(",", 1)[1])
    assert "rfid = 242.4 * bits_per_pixel^(-0.4081)" in read.text and "0.3277 to 0.4885" in read.text
    assert "09fc13295e74: rFID in efficientnet_lite0@57934424, 384 images" in read.text and "torch 2.13.0" in read.text
    assert "paper_eq14 holds for groups = 1 only" in read.text


def rows(tables, states: list[tuple[str, str | None]]) -> list[dict[str, object]]:
    cells = [(4, 16, g, v) for v in (64, 256, 1024) for g in (1, 2, 4)]
    out = []
    for cell, (state, failure) in zip(cells, states, strict=False):
        out.append(tables.row(cell) if state == "done" else tables.missing(cell, state, failure))
    return out


def test_a_sweep_with_nothing_done_has_a_page(tables) -> None:
    report = make_report(tables.load(rows(tables, [("planned", None)] * 6 + [("running", None)] * 3)), "new")
    assert report.counts == {"planned": 6, "running": 3} and report.figures == () and report.cards == ()
    read = Page(page(report))
    assert "0 of 9" in read.text and len(read.rows) == 9
    assert "none of the 9 cells has a value" in read.text


def test_failed_cells_are_named_with_their_message_and_a_message_is_only_text(tables, undrawn) -> None:
    failed = [("done", None)] * 7 + [("failed", "out_of_memory"), ("failed", "error")]
    made = rows(tables, failed)
    made[-1] |= {"message": EVIL, "attempts": 3}
    made[0] |= {"device": EVIL}
    report = make_report(tables.load(made), f"<b>{EVIL}</b>", options=QUICK)
    assert report.counts == {"done": 7, "failed": 2} and list(report.failures["failure"]) == ["out_of_memory", "error"]
    assert any("not missing at random" in warning for warning in report.warnings)
    text = page(report)
    read = Page(text)
    assert read.tags.count("script") == 1 and not [a for a in read.addresses if a == "x"]
    assert EVIL in read.text and "Failed cells: 2" in read.text and "G=4, V=1024" in read.text
    (row,) = [row for row in read.rows if row["failure"] == "error"]
    assert row["message"] == EVIL


def test_one_cell(tables) -> None:
    one = make_report(tables.load([tables.row((4, 16, 1, 64))]), "one", options=QUICK)
    assert one.counts == {"done": 1} and [figure.title for figure in one.figures] == ["Scaling"]
    assert "one value" in one.not_drawn["Group decomposition"] and len(Page(page(one)).rows) == 1


def test_several_protocols(tables, undrawn) -> None:
    cells = [(4, 16, g, v) for v in (64, 256) for g in (1, 2)]
    mixed = [tables.row(cell, protocol=name) for cell in cells for name in ("aaaa", "bbbb")] + [
        tables.row((4, 16, 4, 64), protocol="aaaa")
    ]
    report = make_report(tables.load(mixed), "mixed", options=QUICK)
    assert any("2 evaluation protocols, aaaa (5 rows), bbbb (4 rows)" in warning for warning in report.warnings)
    assert len(report.table) == 9 and report.cards[0].fit.protocol == "aaaa" and report.cards[0].fit.n_rows == 5
    assert make_report(tables.load(mixed), "m", protocol="b", options=QUICK).cards[0].fit.protocol == "bbbb"
    with pytest.raises(AnalysisError, match="no rows"):
        make_report(tables.load([]), "empty")


def pixels(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Files:
    """Run folders with two of three pictures: one is damaged, one is large."""

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        self.paths: dict[str, Path] = {}
        for name, size in (("small", (64, 32)), ("large", (4000, 2000))):
            self.paths[name] = folder / f"{name}.png"
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(
                self.paths[name], compress_level=0
            )
        self.paths["damaged"] = folder / "damaged.png"
        self.paths["damaged"].write_bytes(b"\x89PNG nothing")

    def curve(self, signature: str) -> list[dict[str, float]]:
        return [{"step": float(s), "loss": 1 / s, "mse": 0.1 / s} for s in (1, 2, 3)] if signature != "none" else []

    def picture(self, signature: str) -> Path | None:
        return self.paths.get(signature)


def test_pictures_and_curves_come_from_the_run_folders(tables, undrawn, tmp_path: Path) -> None:
    from PIL import Image

    made = [
        tables.row((4, 16, g, v), signature=name)
        for name, g, v in (("none", 1, 64), ("small", 1, 256), ("damaged", 1, 1024), ("large", 2, 64))
    ]
    report = make_report(tables.load(made), "sweep", Files(tmp_path), options=QUICK)
    assert [one.text for one in report.pictures] == ["large", "small"], (
        "from the least rFID; the damaged one is left out"
    )
    large, small = report.pictures
    assert small.kind == "png" and np.array_equal(pixels(small.data), pixels((tmp_path / "small.png").read_bytes()))
    assert large.kind == "jpeg" and Image.open(io.BytesIO(large.data)).width == 1600 and "G=2, V=64" in large.title
    assert report.curves is not None and report.curves.text == "3 of 4 runs"
    read = Page(page(report))
    assert "Reconstructions" in read.texts and "Training" in read.texts


def samples(path: Path, originals: np.ndarray, random: int) -> np.ndarray:
    """A picture as runs leave it; returns its lower half."""
    from PIL import Image

    made = np.random.default_rng(random).integers(0, 255, originals.shape, np.uint8)
    white = np.full((4, originals.shape[1], 3), 255, np.uint8)
    Image.fromarray(np.concatenate([originals, white, made])).save(path)
    return made


def test_cells_that_reconstruct_the_same_images_stand_below_them(tables, undrawn, tmp_path: Path) -> None:
    files, rng = Files(tmp_path), np.random.default_rng(7)
    first, other = (rng.integers(0, 255, (16, 128, 3), np.uint8) for _ in range(2))
    made = {}
    for number, (name, originals) in enumerate([("a", first), ("b", other), ("c", first)]):
        files.paths[name] = tmp_path / f"{name}.png"
        made[name] = samples(files.paths[name], originals, number)
    rows = [tables.row((4, 16, g, 64), signature=name, rfid=10.0 * g) for name, g in (("a", 4), ("b", 2), ("c", 1))]
    report = make_report(tables.load(rows), "sweep", files, options=QUICK)
    assert [one.text for one in report.pictures] == ["", "c", "a", "", "b"], "by rFID, below their own originals"
    assert np.array_equal(pixels(report.pictures[0].data), first)
    assert np.array_equal(pixels(report.pictures[2].data), made["a"])
    assert np.array_equal(pixels(report.pictures[3].data), other), "b was not measured on the same images"
    assert "rFID 40" in report.pictures[2].title and "rFID 40" in report.pictures[2].alt
    text = page(report)
    assert text.count(report.pictures[0].url) == 1


def test_device_hours_count_failed_attempts_and_runs(tables, undrawn) -> None:
    made = [
        tables.row((4, 16, 1, 64), device_seconds=3600.0, attempts=3, failed_seconds=1800.0),
        tables.row((4, 16, 2, 64), device_seconds=7200.0, attempts=1, failed_seconds=0.0),
        tables.missing((4, 16, 4, 64), "failed", "diverged")
        | {"device_seconds": 900.0, "attempts": 1, "failed_seconds": 900.0},
        tables.missing((4, 16, 8, 64), "planned") | {"device_seconds": None},
        tables.missing((4, 16, 16, 64), "failed", "cancelled") | {"device_seconds": None},
    ]
    report = make_report(tables.load(made), "sweep", options=QUICK)
    spent = report.spent.set_index("state")
    assert report.counts == {"done": 2, "failed": 1, "planned": 1, "stopped": 1} and len(report.failures) == 1
    assert spent["device_hours"].to_dict() == {"done": 3.0, "failed": 0.25, "planned": 0.0, "stopped": 0.0}
    assert spent["failed_hours"].fillna(0).sum() == 0.75 and spent["attempts"].sum() == 5
    assert list(report.spent_by_cell["device_hours"]) == [2.0, 1.0, 0.25]
    assert "G=2" in report.spent_by_cell["setting"][0]
    read = Page(page(report))
    assert "3.25 device hours in all" in read.text and "0.75 of them in " in read.text


def test_alternative_texts_say_the_finding(quickstart: Report) -> None:
    found = {one.title: one.alt for one in quickstart.figures}
    assert "rFID falls with bits per pixel" in found["Scaling"] and "86.6" in found["Scaling"]
    assert "rFID falls with groups G on 6 of 6 lines" in found["Group decomposition"]
    assert "0.125" in found["Codebook usage"], "the least usage"
    assert "front of bits per pixel" in found["Pareto front"] and "86.6" in found["Pareto front"]
    assert "does not wholly absorb" in found["Collapse on bits per pixel"]
    assert "residuals go with downsample" in found["Report card of power_law_bpp"]
    alts = re.findall(r'<img[^>]* alt="([^"]*)"', page(quickstart))
    assert [unescape(alt) for alt in alts if alt] == [*found.values()]


def test_every_box_that_scrolls_can_be_reached_and_the_page_has_one_main(quickstart: Report) -> None:
    text = page(quickstart)
    assert text.count("<main>") == 1
    boxes = re.findall(r'<div class="scroll[^"]*"[^>]*>', text)
    assert boxes and all('tabindex="0"' in box and "aria-label=" in box for box in boxes)
    assert all('tabindex="0"' in one for one in re.findall(r"<pre[^>]*>", text))


def test_a_page_is_written_whole_or_not_at_all(
    quickstart: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_page(quickstart, tmp_path / "deep" / "report.html")
    assert path.read_text().endswith("</html>\n")

    def full(self: Path, *args: object, **more: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_page(quickstart, tmp_path / "deep" / "other.html")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]

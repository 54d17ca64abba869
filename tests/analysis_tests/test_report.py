"""The report page: what it says equals the table, it fetches nothing, and text from tables stays text."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import AnalysisError, Options, load_results
from analysis.page import page, write_page
from analysis.report import Picture, Report, make_report

QUICK = Options(bootstrap=0, starts=8)
EVIL = "</td><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \"more\""


class Page(HTMLParser):
    """The results table as rows of {column: (text, exact)}, and every address, tag and script of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[dict[str, str]] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.keys: list[str] = []
        self._in_table = self._in_cell = self._in_code = False
        self._exact: str | None = None
        self._cell = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name in given if name.startswith("on")], "no handler stands in the markup"
        self._in_code = tag in ("script", "style")
        if tag == "table":
            self._in_table = given.get("id") == "results"
        elif self._in_table and tag == "th":
            self.keys.append(given["data-k"] or "")
        elif self._in_table and tag == "tr" and self.keys:
            self.rows.append({})
        elif self._in_table and tag == "td":
            self._in_cell, self._cell, self._exact = True, "", given.get("data-v")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._in_table = False
        elif tag == "td" and self._in_cell:
            row = self.rows[-1]
            row[self.keys[len(row)]] = self._cell if self._exact is None else self._exact
            self._in_cell = False
        self._in_code = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self._cell += data
        if not self._in_code:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


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
    assert "dd46299f57e9: rFID in efficientnet_lite0@57934424, 384 images" in read.text and "torch 2.13.0" in read.text
    assert "paper_eq14 holds for groups = 1 only" in read.text


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty pictures, where a test is about something else: drawing takes seconds."""
    empty = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    monkeypatch.setattr("analysis.report._svg", lambda title, draw: Picture(title, "svg+xml", empty))


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
    assert small.kind == "png" and small.data == (tmp_path / "small.png").read_bytes()
    assert large.kind == "jpeg" and Image.open(io.BytesIO(large.data)).width == 1600 and "G=2, V=64" in large.title
    assert report.curves is not None and report.curves.text == "3 of 4 runs"
    read = Page(page(report))
    assert "Reconstructions" in read.texts and "Training" in read.texts


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


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(address: str, folder: Path) -> tuple[str, list[str]]:
    """The document as Chromium has it after its scripts ran, and what was written to its console."""
    assert CHROMIUM is not None, "GSQ_REQUIRE_CHROMIUM is set, and there is none on the PATH"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    words += [
        f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=5000",
    ]
    done = subprocess.run([CHROMIUM, *words, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


REQUIRED = bool(os.environ.get("GSQ_REQUIRE_CHROMIUM"))


@pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="no chromium on the PATH (Debian: apt install chromium)")
def test_the_page_in_a_browser(tables, undrawn, tmp_path: Path) -> None:
    made = tables.noisy([(4, 16, g, v) for v in (64, 256, 1024) for g in (1, 2, 4)])
    lost = tables.missing((8, 16, 8, 1024), "failed", "error") | {"message": EVIL}
    file = write_page(make_report(tables.load([*made, lost]), "sweep", options=QUICK), tmp_path / "report.html")
    dom, console = browse(f"{file.as_uri()}#sort=rfid&down=1&filter=V%3C%3D2%5E8+done", tmp_path)
    assert console == [], "no error, nothing fetched, nothing against the policy"
    assert "owned" not in re.search(r"<title>(.*?)</title>", dom)[1]  # type: ignore[index]
    expected = [one["rfid"] for one in made if one["codebook_size"] <= 256]
    shown = re.findall(
        r"<tr(?! hidden)[^>]*>((?:(?!</tr>).)*)</tr>", dom.split('id="results"')[1].split("</table>")[0], re.S
    )
    read = Page(dom)
    visible = [float(re.search(r'data-v="([\d.e+-]+)"', tr)[1]) for tr in shown[1:]]  # type: ignore[index]
    assert len(read.rows) == 10 and len(visible) == 6
    assert [float(row["rfid"]) for row in read.rows if row["rfid"]] == sorted((o["rfid"] for o in made), reverse=True)
    assert read.rows[-1]["state"] == "failed", "what is empty comes last"
    assert sorted(
        float(row["rfid"]) for row in read.rows if row["rfid"] and int(row["codebook_size"]) <= 256
    ) == sorted(expected)

    # The same by hand: clicks and typing, in a copy whose policy lets a script of the test run.
    script = """
    const rows = () => [...document.querySelectorAll("#results tbody tr")].filter((row) => !row.hidden);
    const column = (key) => {
      const at = [...document.querySelectorAll("#results th")].findIndex((head) => head.dataset.k === key);
      return rows().map((row) => row.cells[at].dataset.v ?? row.cells[at].textContent);
    };
    const click = (key) => document.querySelector(`#results th[data-k="${key}"] button`).click();
    const type = (text) => {
      const field = document.getElementById("filter");
      field.value = text;
      field.dispatchEvent(new Event("input"));
      return [rows().length, document.getElementById("shown").textContent];
    };
    const seen = {};
    click("rfid"); seen.up = column("rfid");
    click("rfid"); seen.down = column("rfid");
    seen.aria = document.querySelector('#results th[data-k="rfid"]').getAttribute("aria-sort");
    seen.groups = type("groups=4"); seen.hash = location.hash;
    seen.several = type("G>1 V>=2^10"); seen.word = type("out_of"); seen.text = type("owned");
    seen.none = type("groups=3");
    seen.state = type("state!=done"); seen.all = type("");
    const more = document.querySelector("#results th.more");
    seen.before = getComputedStyle(more).display;
    document.getElementById("all").click();
    seen.after = getComputedStyle(more).display;
    document.body.insertAdjacentHTML("beforeend", `<pre id="seen"></pre>`);
    document.getElementById("seen").textContent = JSON.stringify(seen);
    """
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", file.read_text())
    by_hand = tmp_path / "by-hand.html"
    by_hand.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    dom, console = browse(by_hand.as_uri(), tmp_path)
    assert console == [] and "owned" not in re.search(r"<title>(.*?)</title>", dom)[1]  # type: ignore[index]
    seen = json.loads(unescape(re.findall(r'<pre id="seen">(.*?)</pre>', dom)[-1]))
    up = sorted(float(one["rfid"]) for one in made)
    assert [float(value) for value in seen["up"] if value] == up and seen["up"][-1] == ""
    assert [float(value) for value in seen["down"] if value] == up[::-1] and seen["down"][-1] == ""
    assert seen["aria"] == "descending" and "filter=groups%3D4" in seen["hash"] and "sort=rfid" in seen["hash"]
    assert seen["groups"] == [3, "3 of 10 rows"] and seen["several"][0] == 3 and seen["none"][0] == 0
    assert seen["word"][0] == 0 and seen["text"][0] == 1 and seen["state"][0] == 1 and seen["all"][0] == 10
    assert seen["before"] == "none" and seen["after"] == "table-cell"

"""The report page in Chromium: sorting, filtering, and nothing that its policy forbids."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from report_pages import EVIL, Page

from gsq.analysis import Options
from gsq.analysis.reporting.page import write_page
from gsq.analysis.reporting.report import make_report

QUICK = Options(bootstrap=0, starts=8)
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


# What people type, on a table of V in (64, 256, 1024) by G in (1, 2, 4), and a failed cell with G = 8, V = 1024.
NO_NUMBER = (
    *("groups=2,4", "groups = 2, 4", "groups=x", "groups=", "groups > ", "groups=2-4", "groups = 2 - 4"),
    *("groups=2..4", "groups = 2 to 4", "groups=2 4", "groups=0x2", "groups!=x", "groups <= two"),
)
TYPED = {
    "groups = 4": 3,
    "Groups=4": 3,
    "latent dim = 16": 10,
    "codebook size >= 2^10": 4,
    "CODEBOOK_SIZE>=2**10": 4,
    "2 <= groups <= 4": 6,
    "1<G<=4 V=64": 2,
    "G=2|4": 6,
    "G = 2 or 4": 6,
    "G=1 or V=64": 5,
    "G=2 and V=64": 1,
    "groups=2, V=64": 1,
    "groups != 2|4": 4,
    "G≥4": 4,
    "d=4": 3,
    "state = done": 9,
    "state=done|failed groups=8": 1,
    "failed groups=8": 1,
    "bits per pixel < 1": 4,
}


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
    seen.typed = {};
    for (const text of TYPED) seen.typed[text] = [type(text)[0], document.getElementById("why").textContent];
    seen.unknown = [type("grops = 4")[0], document.getElementById("why").textContent];
    seen.state = type("state!=done"); seen.all = type("");
    const more = document.querySelector("#results th.more");
    seen.before = getComputedStyle(more).display;
    document.getElementById("all").click();
    seen.after = getComputedStyle(more).display;
    document.body.insertAdjacentHTML("beforeend", `<pre id="seen"></pre>`);
    document.getElementById("seen").textContent = JSON.stringify(seen);
    """
    script = script.replace("TYPED", json.dumps([*NO_NUMBER, *TYPED]))
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
    for typed in NO_NUMBER:
        count, why = seen["typed"][typed]
        assert count == 0 and "groups" in why, typed
    assert {typed: seen["typed"][typed][0] for typed in TYPED} == TYPED
    assert not any(why for typed, (_, why) in seen["typed"].items() if typed in TYPED)
    assert "groups=2|4" in seen["typed"]["groups=2,4"][1] and "grops" in seen["unknown"][1]
    assert seen["before"] == "none" and seen["after"] == "table-cell"

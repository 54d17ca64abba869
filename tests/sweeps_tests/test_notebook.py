"""What a notebook shows of plans, states and fits, and while cells are trained."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preamble import PlanOf

from gsq.analysis import fit, load_results, report_card
from gsq.html import MOST, html_table
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.notebook import Progress, progress_for
from gsq.sweeps.state.reconcile import no_update, reconcile
from gsq.sweeps.state.status import status


def test_tables_escape_what_users_write() -> None:
    text = html_table("<b>", ("<i>",), [("<script>",)], ("&",))
    assert "<script>" not in text and "&lt;script&gt;" in text and "<b>" not in text and "&amp;" in text
    assert "... and 3 more" in html_table("", ("",), [("",)] * (MOST + 3))


def test_a_plan_and_its_state_are_tables(plan_of: PlanOf, write_run: Callable[..., RunFolder], folder: Path) -> None:
    plan = plan_of(axes={"width": [8, 16]})
    assert plan._repr_html_().count("<tr>") == 3 and plan.cells[1].signature in plan._repr_html_()
    SweepFolder(folder / "runs", plan.name).write_plan(plan)
    write_run(plan.cells[0], "failed", 3, heartbeat=1.0, failure="error", message="<img src=x>")
    shown = status("small")._repr_html_()
    assert "&lt;img src=x&gt;" in shown and "<img" not in shown and "3/300" in shown


def test_a_fit_and_its_card_are_tables() -> None:
    frame = load_results(Path(__file__).resolve().parents[2] / "results" / "quickstart.parquet")
    found = fit(frame, "power_law_bpp")
    assert "<td>alpha</td>" in found._repr_html_() and f"{found.parameters['alpha']:.4g}" in found._repr_html_()
    card = report_card(found)
    assert "Findings" in card._repr_html_() and card.fit._repr_html_() in card._repr_html_()


def test_progress_is_drawn_in_a_notebook_alone(
    plan_of: PlanOf, write_run: Callable[..., RunFolder], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(axes={"width": [8, 16]})
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert progress_for(plan) is no_update
    shell = type("ZMQInteractiveShell", (), {})()
    fake: Any = types.ModuleType("IPython")
    fake.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", fake)
    progress = progress_for(plan)
    assert isinstance(progress, Progress)
    drawn: list[str] = []
    monkeypatch.setattr(progress, "_show", drawn.append)
    write_run(plan.cells[0], "running", 7, pid_start="")
    sweep = SweepFolder(folder / "runs", plan.name)
    sweep.write_plan(plan)
    signatures = [cell.signature for cell in plan.cells]
    records = sweep.records(signatures)
    import time

    for _ in range(3):
        progress(reconcile(signatures, records, {}, time.time()), records)
    assert len(drawn) == 1 and "2 cells" in drawn[0] and "7/300" in drawn[0]

"""What generation probes say of a table: learned rates, gFID beside rFID, and laws of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, card_figure, collapse, fit, generation, report_card, tradeoff_figure
from gsq.analysis.reporting.report import make_report
from gsq.cli.plot import KINDS


def table(probe: str = "tiny", optimum: float = 0.7) -> pd.DataFrame:
    """Twelve cells whose rfid is a power law of the learned rate, and whose gfid is least at ``optimum`` bits."""
    random, rows = np.random.default_rng(0), []
    for f in (4, 8):
        for groups in (1, 2, 4):
            for size in (64, 1024):
                rate = 0.7 * groups * np.log2(size) / f**2
                rows.append(
                    {
                        **{"sweep": "s", "signature": f"{len(rows):012x}", "step": 9, "protocol": "p", "state": "done"},
                        **{"downsample": f, "groups": groups, "codebook_size": size, "latent_dim": 16, "probe": probe},
                        "probe_protocol": f"{probe}-hash",
                        "probe_converged": True,
                        "probe_overfits": False,
                        "prior_bits_per_pixel": rate,
                        "prior_bits_per_token": rate * f**2,
                        "rfid": 30 * rate**-0.5 * np.exp(random.normal(0, 0.01)),
                        "gfid": 50 * np.exp(0.2 * np.log(rate / optimum) ** 2 + random.normal(0, 0.01)),
                    }
                )
    return pd.DataFrame(rows)


def test_the_laws_of_prior_bits_find_their_exponent_and_their_optimum() -> None:
    low, high = fit(table(), "prior_rate", bootstrap=0).profile_intervals["alpha"]
    assert low < 0.5 < high and high - low < 0.1
    law = fit(table(), "tradeoff", bootstrap=0)
    low, high = law.profile_intervals["b"]
    assert low < 0.7 < high and high / low < 1.2 and not law.undetermined
    assert fit(table(optimum=1.4), "tradeoff", bootstrap=0).parameters["b"] == pytest.approx(1.4, rel=0.1)


def test_cells_whose_orders_disagree_are_named_the_widest_first() -> None:
    frame = table()
    found = generation(frame)
    pairs = [(a, b) for a in frame.index for b in frame.index if a < b]
    wrong = [
        (a, b) for a, b in pairs if (frame["rfid"][a] - frame["rfid"][b]) * (frame["gfid"][a] - frame["gfid"][b]) < 0
    ]
    assert len(found.disagree) == len(wrong) and found.pairs == len(pairs) == 66
    better, other = found.disagree[0]
    assert better in found.cells and other in found.cells
    assert found.rfid[found.cells.index(better)] < found.rfid[found.cells.index(other)]
    assert found.gfid[found.cells.index(better)] > found.gfid[found.cells.index(other)]
    assert "66 pairs" in found.text and "had not levelled off" not in found.text
    unfinished = generation(frame.assign(probe_converged=[False] * 2 + [True] * 10)).text
    assert "2 of the probes" in unfinished and "probe_converged" in unfinished


def test_probes_of_two_protocols_are_never_mixed() -> None:
    both = pd.concat([table(), table("small", 1.4)], ignore_index=True)
    for law in ("tradeoff", "prior_rate"):
        with pytest.raises(AnalysisError, match=r"mixes 2 probe protocols.*tiny-hash \(12 rows\)"):
            fit(both, law, bootstrap=0)
    for make in (generation, tradeoff_figure, lambda one: collapse(one, ["prior_bits_per_pixel"])):
        with pytest.raises(AnalysisError, match="mixes 2 probe protocols"):
            make(both)
    # What does not read a probe's columns takes each evaluation once.
    assert fit(both, "power_law_bpp", bootstrap=0).n_rows == 12
    assert not {one.derived for one in collapse(both)} & {"prior_bits_per_pixel", "prior_bits_per_token"}
    assert "prior_bits_per_pixel" in {one.derived for one in collapse(table())}


def test_a_collapsed_cell_has_no_logarithm_and_says_so() -> None:
    frame = table()
    frame.loc[0, ["prior_bits_per_pixel", "prior_bits_per_token"]] = 0.0
    assert "prior_bits_per_pixel" not in {one.derived for one in collapse(frame)}
    with pytest.raises(AnalysisError, match=r"prior_bits_per_pixel.*positive"):
        collapse(frame, ["prior_bits_per_pixel"])


def test_figures_reports_and_cards_show_generation(tmp_path: Path) -> None:
    assert "tradeoff" in KINDS
    figure = tradeoff_figure(table(), tmp_path / "t.png")
    assert [axes.get_xlabel() for axes in figure.axes] == ["prior bits per pixel (learned)"] * 2
    assert (tmp_path / "t.png").exists()
    card = report_card(fit(table(), "prior_rate", bootstrap=0))
    assert card.generation is not None and "Generation" in card.text() and "generation" in card.to_dict()
    plain = report_card(fit(table().drop(columns="gfid"), "power_law_bpp", bootstrap=0))
    assert plain.generation is None and "generation" not in plain.to_dict()
    assert len(card_figure(card).axes) == 2 + min(6, len(card.trends)) + 1
    titles = {one.title for one in make_report(table(), "s", laws=["prior_rate"]).figures}
    assert "Reconstruction and generation" in titles
    with pytest.raises(AnalysisError, match=r"no cell has a gfid.*--probe"):
        generation(table().drop(columns="gfid"))

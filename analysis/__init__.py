"""Tables to laws to figures.

    frame = load_results("results/quickstart.parquet")
    law = fit(frame)                         # rfid = c * bits_per_pixel^(-alpha), with intervals
    print(law.summary())
    print(report_card(law).text())         # everything to know before quoting it
    compare_laws(frame)                      # which law predicts what it has not seen
    fit(load_table("runs.csv"), "loss = E + A / N^a + B / D^b", bounds={"E": (0, float("inf"))})
    scaling_figure(frame, [law], "scaling.png")
    print(design(law, candidates, 40, "parameter=alpha", cost="device_hours").text())   # what to run next
    write_page(make_report(frame, "quickstart"), "report.html")

Names are imported on first use (PEP 562), so that ``import analysis`` costs nothing. The module behind
``fit`` is ``fitting``: a submodule of the same name would replace the function on the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.card import ReportCard, Trend, report_card, residual_trends
    from analysis.collapsing import Collapse, collapse
    from analysis.compare import Comparison, Errors, HeldOut, compare_laws, comparisons, held_out
    from analysis.contours import ContourPanel, contour_figure, contour_panels
    from analysis.curves import Extrapolation, extrapolate
    from analysis.design_figures import design_figure, replay_figure
    from analysis.designing import Design, design
    from analysis.errors import AnalysisError
    from analysis.expecting import Power, power
    from analysis.figures import (
        card_figure,
        course_figure,
        curve_figure,
        draw_panel,
        group_figure,
        scaling_figure,
        step_figure,
        usage_figure,
    )
    from analysis.fitting import fit, fit_by
    from analysis.information import Target, read_target
    from analysis.laws import DEFAULT_LAWS, LAWS, Law, get_law, paper_law_reason
    from analysis.options import Options
    from analysis.page import write_page
    from analysis.panels import (
        Curve,
        Overlay,
        Panel,
        Series,
        StepPanel,
        StepSeries,
        axis_panel,
        rate_panel,
        reference_rows,
        step_panel,
    )
    from analysis.pictures import compare_reconstructions, reconstruction_figure
    from analysis.predictions import SeedNoise, check_predictions, prediction_figure, seed_figure, seed_noise
    from analysis.replaying import Replay, replay
    from analysis.report import Report, make_report
    from analysis.result import Fit, LackOfFit
    from analysis.scatter import (
        CollapsePanel,
        ParetoPanel,
        collapse_figure,
        collapse_panels,
        pareto_figure,
        pareto_panel,
    )
    from analysis.table import (
        Excluded,
        load_reference,
        load_results,
        load_table,
        measured,
        results_table,
        select_protocol,
        with_derived,
    )

_HOME = {
    "AnalysisError": "errors",
    "Collapse": "collapsing",
    "CollapsePanel": "scatter",
    "Comparison": "compare",
    "ContourPanel": "contours",
    "Curve": "panels",
    "DEFAULT_LAWS": "laws",
    "Design": "designing",
    "Errors": "compare",
    "Excluded": "table",
    "Extrapolation": "curves",
    "Fit": "result",
    "HeldOut": "compare",
    "LAWS": "laws",
    "LackOfFit": "result",
    "Law": "laws",
    "Options": "options",
    "Overlay": "panels",
    "Panel": "panels",
    "ParetoPanel": "scatter",
    "Power": "expecting",
    "Replay": "replaying",
    "Report": "report",
    "ReportCard": "card",
    "SeedNoise": "predictions",
    "Series": "panels",
    "StepPanel": "panels",
    "StepSeries": "panels",
    "Target": "information",
    "Trend": "card",
    "axis_panel": "panels",
    "card_figure": "figures",
    "check_predictions": "predictions",
    "collapse": "collapsing",
    "collapse_figure": "scatter",
    "collapse_panels": "scatter",
    "compare_laws": "compare",
    "compare_reconstructions": "pictures",
    "comparisons": "compare",
    "contour_figure": "contours",
    "contour_panels": "contours",
    "course_figure": "figures",
    "curve_figure": "figures",
    "design": "designing",
    "design_figure": "design_figures",
    "draw_panel": "figures",
    "extrapolate": "curves",
    "fit": "fitting",
    "fit_by": "fitting",
    "get_law": "laws",
    "group_figure": "figures",
    "held_out": "compare",
    "load_reference": "table",
    "load_results": "table",
    "load_table": "table",
    "make_report": "report",
    "measured": "table",
    "paper_law_reason": "laws",
    "pareto_figure": "scatter",
    "pareto_panel": "scatter",
    "power": "expecting",
    "prediction_figure": "predictions",
    "rate_panel": "panels",
    "read_target": "information",
    "reconstruction_figure": "pictures",
    "reference_rows": "panels",
    "replay": "replaying",
    "replay_figure": "design_figures",
    "report_card": "card",
    "residual_trends": "card",
    "results_table": "table",
    "scaling_figure": "figures",
    "seed_figure": "predictions",
    "seed_noise": "predictions",
    "select_protocol": "table",
    "step_figure": "figures",
    "step_panel": "panels",
    "usage_figure": "figures",
    "with_derived": "table",
    "write_page": "page",
}

__all__ = [
    "DEFAULT_LAWS",
    "LAWS",
    "AnalysisError",
    "Collapse",
    "CollapsePanel",
    "Comparison",
    "ContourPanel",
    "Curve",
    "Design",
    "Errors",
    "Excluded",
    "Extrapolation",
    "Fit",
    "HeldOut",
    "LackOfFit",
    "Law",
    "Options",
    "Overlay",
    "Panel",
    "ParetoPanel",
    "Power",
    "Replay",
    "Report",
    "ReportCard",
    "SeedNoise",
    "Series",
    "StepPanel",
    "StepSeries",
    "Target",
    "Trend",
    "axis_panel",
    "card_figure",
    "check_predictions",
    "collapse",
    "collapse_figure",
    "collapse_panels",
    "compare_laws",
    "compare_reconstructions",
    "comparisons",
    "contour_figure",
    "contour_panels",
    "course_figure",
    "curve_figure",
    "design",
    "design_figure",
    "draw_panel",
    "extrapolate",
    "fit",
    "fit_by",
    "get_law",
    "group_figure",
    "held_out",
    "load_reference",
    "load_results",
    "load_table",
    "make_report",
    "measured",
    "paper_law_reason",
    "pareto_figure",
    "pareto_panel",
    "power",
    "prediction_figure",
    "rate_panel",
    "read_target",
    "reconstruction_figure",
    "reference_rows",
    "replay",
    "replay_figure",
    "report_card",
    "residual_trends",
    "results_table",
    "scaling_figure",
    "seed_figure",
    "seed_noise",
    "select_protocol",
    "step_figure",
    "step_panel",
    "usage_figure",
    "with_derived",
    "write_page",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"analysis.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

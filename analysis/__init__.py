"""Tables to laws to figures.

    frame = load_results("results/quickstart.parquet")
    power = fit(frame)                       # rfid = c * bits_per_pixel^(-alpha), bootstrap intervals
    print(power.summary())
    scaling_figure(frame, [power], "scaling.png")

Names are imported on first use (PEP 562), so that ``import analysis`` costs nothing. The module behind
``fit`` is ``fitting``: a submodule of the same name would replace the function on the package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.errors import AnalysisError
    from analysis.figures import draw_panel, reconstruction_figure, scaling_figure, step_figure
    from analysis.fitting import fit
    from analysis.laws import LAWS, Law, get_law, paper_law_reason
    from analysis.panels import Curve, Panel, Series, StepPanel, StepSeries, axis_panel, rate_panel, step_panel
    from analysis.result import Fit
    from analysis.table import Excluded, load_results, measured, results_table, select_protocol

_HOME = {
    "AnalysisError": "errors",
    "Curve": "panels",
    "Excluded": "table",
    "Fit": "result",
    "LAWS": "laws",
    "Law": "laws",
    "Panel": "panels",
    "Series": "panels",
    "StepPanel": "panels",
    "StepSeries": "panels",
    "axis_panel": "panels",
    "draw_panel": "figures",
    "fit": "fitting",
    "get_law": "laws",
    "load_results": "table",
    "measured": "table",
    "paper_law_reason": "laws",
    "rate_panel": "panels",
    "reconstruction_figure": "figures",
    "results_table": "table",
    "scaling_figure": "figures",
    "select_protocol": "table",
    "step_figure": "figures",
    "step_panel": "panels",
}

__all__ = [
    "LAWS",
    "AnalysisError",
    "Curve",
    "Excluded",
    "Fit",
    "Law",
    "Panel",
    "Series",
    "StepPanel",
    "StepSeries",
    "axis_panel",
    "draw_panel",
    "fit",
    "get_law",
    "load_results",
    "measured",
    "paper_law_reason",
    "rate_panel",
    "reconstruction_figure",
    "results_table",
    "scaling_figure",
    "select_protocol",
    "step_figure",
    "step_panel",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"analysis.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

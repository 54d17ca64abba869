"""Sweeps: spec, plan, submission, status and gathering.

    spec = load_spec("sweeps/configs/quickstart.yaml")
    submit(plan(spec), cluster="local")      # or "slurm", or a cluster file
    path = gather(spec.name)                 # results/quickstart.parquet
    cancel(spec.name, ["groups=4"])          # and retry, read_log, clean
    study = search("search-optimizer")       # the Optuna study of a search, for Optuna's plots

Names are imported on first use, so that ``import sweeps`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.association import AxisTest
    from sweeps.canary import run_canaries
    from sweeps.cluster import Cluster, load_cluster
    from sweeps.control import Cancellation, cancel, retry
    from sweeps.coverage import Coverage, missing
    from sweeps.curves import gather_curves
    from sweeps.forecasting import Forecast, admit, forecast
    from sweeps.gathering import gather
    from sweeps.housekeeping import Cleaning, clean
    from sweeps.listing import overview
    from sweeps.logs import Log, read_log
    from sweeps.monitoring import SweepStatus, status
    from sweeps.pictures import sample_pictures
    from sweeps.planning import Cell, Plan
    from sweeps.planning import make_plan as plan
    from sweeps.schema import SCIENCE_COLUMNS, SchemaError, read_table
    from sweeps.spec import Spec, load_spec
    from sweeps.studies import SearchStatus, search
    from sweeps.submission import Submission, submit

# The modules bear other names than the functions: a submodule would replace a function on the package.
_HOME = {
    "AxisTest": ("association", "AxisTest"),
    "Cancellation": ("control", "Cancellation"),
    "Cell": ("planning", "Cell"),
    "Cleaning": ("housekeeping", "Cleaning"),
    "Cluster": ("cluster", "Cluster"),
    "Coverage": ("coverage", "Coverage"),
    "Log": ("logs", "Log"),
    "Plan": ("planning", "Plan"),
    "Forecast": ("forecasting", "Forecast"),
    "SCIENCE_COLUMNS": ("schema", "SCIENCE_COLUMNS"),
    "SchemaError": ("schema", "SchemaError"),
    "Spec": ("spec", "Spec"),
    "Submission": ("submission", "Submission"),
    "SearchStatus": ("studies", "SearchStatus"),
    "SweepStatus": ("monitoring", "SweepStatus"),
    "admit": ("forecasting", "admit"),
    "cancel": ("control", "cancel"),
    "clean": ("housekeeping", "clean"),
    "forecast": ("forecasting", "forecast"),
    "gather": ("gathering", "gather"),
    "gather_curves": ("curves", "gather_curves"),
    "load_cluster": ("cluster", "load_cluster"),
    "load_spec": ("spec", "load_spec"),
    "missing": ("coverage", "missing"),
    "overview": ("listing", "overview"),
    "plan": ("planning", "make_plan"),
    "read_log": ("logs", "read_log"),
    "read_table": ("schema", "read_table"),
    "retry": ("control", "retry"),
    "run_canaries": ("canary", "run_canaries"),
    "sample_pictures": ("pictures", "sample_pictures"),
    "search": ("studies", "search"),
    "status": ("monitoring", "status"),
    "submit": ("submission", "submit"),
}

__all__ = [
    "SCIENCE_COLUMNS",
    "AxisTest",
    "Cancellation",
    "Cell",
    "Cleaning",
    "Cluster",
    "Coverage",
    "Forecast",
    "Log",
    "Plan",
    "SchemaError",
    "SearchStatus",
    "Spec",
    "Submission",
    "SweepStatus",
    "admit",
    "cancel",
    "clean",
    "forecast",
    "gather",
    "gather_curves",
    "load_cluster",
    "load_spec",
    "missing",
    "overview",
    "plan",
    "read_log",
    "read_table",
    "retry",
    "run_canaries",
    "sample_pictures",
    "search",
    "status",
    "submit",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(importlib.import_module(f"sweeps.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

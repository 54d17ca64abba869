"""Sweeps: spec, plan, submission, status and gathering.

    spec = load_spec("sweeps/configs/quickstart.yaml")
    submit(plan(spec), cluster="local")      # or "slurm", or a cluster file
    path = gather(spec.name)                 # results/quickstart.parquet

Names are imported on first use, so that ``import sweeps`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.cluster import Cluster, load_cluster
    from sweeps.gathering import gather
    from sweeps.monitoring import SweepStatus, status
    from sweeps.planning import Cell, Plan
    from sweeps.planning import make_plan as plan
    from sweeps.schema import SCIENCE_COLUMNS, SchemaError, read_table
    from sweeps.spec import Spec, load_spec
    from sweeps.submission import Submission, submit

# The modules bear other names than the functions: a submodule would replace a function on the package.
_HOME = {
    "Cell": ("planning", "Cell"),
    "Cluster": ("cluster", "Cluster"),
    "Plan": ("planning", "Plan"),
    "SCIENCE_COLUMNS": ("schema", "SCIENCE_COLUMNS"),
    "SchemaError": ("schema", "SchemaError"),
    "Spec": ("spec", "Spec"),
    "Submission": ("submission", "Submission"),
    "SweepStatus": ("monitoring", "SweepStatus"),
    "gather": ("gathering", "gather"),
    "load_cluster": ("cluster", "load_cluster"),
    "load_spec": ("spec", "load_spec"),
    "plan": ("planning", "make_plan"),
    "read_table": ("schema", "read_table"),
    "status": ("monitoring", "status"),
    "submit": ("submission", "submit"),
}

__all__ = [
    "SCIENCE_COLUMNS",
    "Cell",
    "Cluster",
    "Plan",
    "SchemaError",
    "Spec",
    "Submission",
    "SweepStatus",
    "gather",
    "load_cluster",
    "load_spec",
    "plan",
    "read_table",
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

"""What the tests of gathering share."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gsq.records.folder import runs_root
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import read_table
from gsq.sweeps.tables.gather import gather


def evaluation(step: int, rfid: float, protocol: str = "p1", **more: Any) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "step": step,
        "rfid": rfid,
        "psnr_db": 20.0,
        "usage_per_group": [0.5, 0.25],
        "images_seen": 8 * step,
        "features": "efficientnet_lite0@57934424",
        "num_images": 16,
        "feature_dim": 320,
        "rank_deficient": True,
        "protocol_fields": {"not": "a column"},
        **more,
    }


def submitted(plan: Plan) -> SweepFolder:
    sweep = SweepFolder(runs_root(), plan.name)
    sweep.write_plan(plan)
    return sweep


def table(name: str) -> pd.DataFrame:
    return read_table(gather(name))

"""The rFID that other papers print, from a CSV of what was read where, as rows of a results table.

Every row names its source: an address, and the table there. Rows of one table at one resolution, by one known protocol,
share a protocol here; all others are never fitted together, for nobody knows how their protocols compare.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables.table import load_results
from gsq.sweeps.schema.columns import Column

PREFIX = "published-"
COLUMNS = (
    *("model", "quantizer", "codebook_size", "groups", "tokens", "downsampling", "resolution", "dataset"),
    *("training_data", "rfid", "psnr", "lpips", "usage", "source", "table", "protocol", "note"),
)
WHOLE = ("codebook_size", "groups", "tokens", "downsampling", "resolution")
# What is known of a published row beside the columns of every table.
EXTRA = {
    name: Column(name, "string", "", "provenance", text)
    for name, text in (
        ("model", "name of the model in its source"),
        ("dataset", "images that were compared"),
        ("training_data", "images that it was trained on; null where the source does not say"),
        ("address", "address of the text in which the numbers were read"),
        ("table", "table or section there"),
        ("protocol_known", "what the source says of the protocol; null where it says nothing"),
    )
}


def load_published() -> pd.DataFrame:
    """The rFID that papers print for other tokenizers (results/reference/README.md), one row a number.

    Draw them beside your own numbers, but do not fit them together: nearly every source has its own protocol."""
    return load_results(Path(__file__).with_name("published.parquet"))


def is_published(frame: pd.DataFrame) -> bool:
    """Whether every row is a number that a paper prints."""
    known: list[object] = list(frame.get("protocol", []))
    return len(known) > 0 and all(str(protocol).startswith(PREFIX) for protocol in known)


def published_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the CSV by the columns of a results table and EXTRA.

    Raises AnalysisError, which names file and line, for a missing column, a number that is none, or a row without
    model, rfid, address or table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if absent:
            raise AnalysisError(f"{path}: column {absent[0]!r} is missing; there must be {', '.join(COLUMNS)}")
        return [_row(line, f"{path}, line {reader.line_num}") for line in reader]


def _number(line: Mapping[str, str], name: str, where: str) -> float | None:
    text = (line[name] or "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (name in WHOLE and value != int(value)):
        what = "a whole number" if name in WHOLE else "a number that is not negative"
        raise AnalysisError(f"{where}: {name} {text!r} is not {what}; leave it empty where the source does not say")
    return value


def _row(line: Mapping[str, str], where: str) -> dict[str, Any]:
    for name in ("model", "rfid", "source", "table"):
        if not (line[name] or "").strip():
            raise AnalysisError(f"{where}: {name} is empty; a number goes in only with a source that can be cited")
    value = {name: _number(line, name, where) for name in (*WHOLE, "rfid", "psnr", "lpips", "usage")}
    whole = {name: None if value[name] is None else int(value[name] or 0) for name in WHOLE}
    groups, rows, tokens, size = whole["groups"], whole["codebook_size"], whole["tokens"], whole["resolution"]
    bits = groups * math.log2(rows) if groups and rows else None
    source = [line[name].strip() for name in ("source", "table", "resolution", "protocol")]
    known = [line[name].strip() for name in COLUMNS]
    return {
        "sweep": "published",
        "signature": hashlib.sha256("|".join(known).encode()).hexdigest()[:12],
        "protocol": PREFIX + hashlib.sha256("|".join(source).encode()).hexdigest()[:8],
        "resolution": size,
        "quantizer": line["quantizer"].strip() or None,
        "groups": groups,
        "codebook_size": rows,
        "depth": 1,
        "downsample": whole["downsampling"],
        "bits_per_token": bits,
        "bits_per_pixel": tokens * bits / size**2 if tokens and bits and size else None,
        "tokens_per_image": tokens * groups if tokens and groups else None,
        "rfid": value["rfid"],
        "psnr_db": value["psnr"],
        "lpips": value["lpips"],
        "usage": value["usage"],
        "state": "done",
        "message": line["note"].strip() or None,
        "model": line["model"].strip(),
        "dataset": line["dataset"].strip() or None,
        "training_data": line["training_data"].strip() or None,
        "address": line["source"].strip(),
        "table": line["table"].strip(),
        "protocol_known": line["protocol"].strip() or None,
    }

"""The results table: one row for each (sweep, signature, step, protocol), and for each generation probe of it.

A planned cell without an evaluation also has a row, with null metrics, so that gaps stay visible. Among the other rooms
``analysis`` imports only this module, which loads pandas and pyarrow when a table is built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gsq.config.axes import AXES
from gsq.files import whole
from gsq.sweeps.schema.row_groups import RowGroups, array, compact

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA_VERSION = 2
KEY = ("sweep", "signature", "step", "protocol")

Role = Literal["key", "axis", "derived", "metric", "cost", "provenance", "protocol", "state", "curve"]


class SchemaError(ValueError):
    """A file that is no results table of gsq's, or has another schema version."""


@dataclass(frozen=True)
class Column:
    """One typed column; ``unit`` and ``description`` are written to the Parquet field metadata."""

    name: str
    type: Literal["string", "int64", "float64", "bool", "list<float64>"]
    unit: str
    role: Role
    description: str


def _columns(role: Role, *rows: tuple[str, str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(name, kind, unit, role, text) for name, kind, unit, text in rows)  # type: ignore[arg-type]


COLUMNS: tuple[Column, ...] = (
    *_columns(
        "key",
        ("sweep", "string", "", "name of the sweep"),
        ("signature", "string", "", "identity of the run: 12 hex digits over its science config"),
        (
            "step",
            "int64",
            "steps",
            "optimiser step of the evaluated weights; null without an evaluation, or if trained elsewhere",
        ),
    ),
    *_columns(
        "protocol",
        ("protocol", "string", "", "hash of the evaluation protocol; null without an evaluation"),
        ("features", "string", "", "feature extractor behind rfid, and the first digits of its weights' sha256"),
        ("feature_dim", "int64", "features", "length of a feature vector"),
        ("num_images", "int64", "images", "validation images compared"),
        ("resolution", "int64", "pixels", "height and width of the images compared"),
        ("rank_deficient", "bool", "", "fewer images than feature_dim + 1: rfid is biased upwards"),
        ("probe", "string", "", "size of the generation probe: tiny, small or base; null without one"),
        ("probe_protocol", "string", "", "hash of the probe's protocol, under which its columns may be compared"),
        ("lpips_network", "string", "", "network behind lpips and the first digits of its weights' sha256, else null"),
    ),
    *(Column(a.name, a.type, a.unit, a.role, a.description) for a in AXES if a.stored),
    *_columns(
        "derived",
        ("effective_bits", "float64", "bits", "sum over groups of log2 perplexity (groups taken as independent)"),
    ),
    *_columns(
        "metric",
        ("rfid", "float64", "", "Frechet distance of reconstructions to originals in `features`"),
        ("kid", "float64", "", "kernel inception distance in `features`, unbiased (it may be negative)"),
        ("fd_dinov2", "float64", "", "Frechet distance in DINOv2 ViT-L/14 features; null where not measured"),
        ("sfid", "float64", "", "Frechet distance in spatial Inception features; null where not measured"),
        ("cmmd", "float64", "", "squared discrepancy of CLIP embeddings, times 1000; null where not measured"),
        ("precision", "float64", "share", "reconstructions in the originals' manifold, k = 3; null where not measured"),
        ("recall", "float64", "share", "originals in the reconstructions' manifold, k = 3; null where not measured"),
        ("inception_score", "float64", "", "inception score of the reconstructions; null where not measured"),
        ("lpips", "float64", "", "learned perceptual distance; null where not measured"),
        ("psnr_db", "float64", "dB", "peak signal-to-noise ratio on uint8, mean over images"),
        ("ssim", "float64", "", "structural similarity on uint8, mean over images"),
        ("mse", "float64", "", "mean squared error, images in [-1, 1]"),
        ("usage", "float64", "share", "codebook rows used at least once, over all groups or channels"),
        ("perplexity", "float64", "rows", "exp(entropy) of the pooled index histogram"),
        ("usage_per_group", "list<float64>", "share", "usage of each group"),
        ("perplexity_per_group", "list<float64>", "rows", "perplexity of each group"),
        ("dead_rows", "int64", "rows", "codebook rows never used"),
        ("tokens", "int64", "indices", "indices behind usage and perplexity"),
        ("few_tokens", "bool", "", "fewer than 10 tokens a row, which limits usage and perplexity"),
        ("uniform_usage", "float64", "share", "usage that as many uniform indices would give, 1 - (1 - 1/V)^tokens"),
        (
            "prior_bits_per_token",
            "float64",
            "bits",
            "exact code length of a held-out latent position under the prior that a generation probe has learned; null "
            "without a probe, like the columns after it",
        ),
        ("prior_bits_per_pixel", "float64", "bits/pixel", "the same for a pixel"),
        (
            "prior_gain_bits",
            "float64",
            "bits",
            "effective_bits - prior_bits_per_token: what the prior knows of context",
        ),
        ("gfid", "float64", "", "Frechet distance of the probe's decoded samples to held-out images in `features`"),
        ("gfid_minus_rfid", "float64", "", "gfid - rfid: what generating the indices costs beyond reconstruction"),
        ("gfid_samples", "int64", "images", "samples behind gfid, at temperature 1 and without guidance"),
        ("probe_train_bits", "float64", "bits", "code length of a latent position of images that the probe has seen"),
        (
            "probe_curve",
            "list<float64>",
            "bits",
            "held-out code length of a latent position at equal steps of the probe",
        ),
        ("probe_converged", "bool", "", "whether the probe's training has levelled off"),
        ("probe_overfits", "bool", "", "whether held-out images got longer codes towards the end of the training"),
    ),
    *_columns(
        "cost",
        ("images_seen", "int64", "images", "training images seen at `step`"),
        ("parameters", "int64", "parameters", "encoder, quantizer and decoder"),
        ("train_flops", "float64", "FLOPs", "training FLOPs up to `step`, 2 for a multiply-add"),
        ("device_seconds", "float64", "s", "device time of all attempts: training, evaluation and start-up"),
        ("failed_seconds", "float64", "s", "the part of device_seconds in attempts that failed or were stopped"),
        ("probe_parameters", "int64", "parameters", "learned parameters of the generation probe"),
        ("probe_seconds", "float64", "s", "time of the probe: tokens, training, samples; less what was resumed"),
        ("peak_memory_bytes", "int64", "bytes", "largest resident (CPU) or allocated (GPU) memory"),
    ),
    *_columns(
        "provenance",
        ("execution_signature", "string", "", "hash of how it was run: source, versions, device, world size"),
        ("source", "string", "", "hash of the Python source of gsq that it was run with"),
        ("commit", "string", "", "git commit of the source, with + where the tree was modified; null without git"),
        ("versions", "string", "", "package versions as JSON"),
        ("parts", "string", "", "parts of a user's own and the first digits of their sources' hashes, as JSON"),
        ("device", "string", "", "device name"),
        (
            "evaluated_by",
            "string",
            "",
            "source, versions and device of gsq evaluate, as JSON; null where the run itself evaluated",
        ),
        ("attempts", "int64", "attempts", "number of attempts"),
        ("started_from", "string", "", "run whose checkpoint it started from, which its cost leaves out"),
    ),
    *_columns(
        "state",
        ("state", "string", "", "planned, queued, running, done, pruned or failed"),
        (
            "asked",
            "bool",
            "",
            "whether the sweep file, as last submitted, asks for this protocol; null where no file says. Laws and "
            "figures take these rows where a table has several protocols",
        ),
        ("failure", "string", "", "failure class of a failed cell, else null"),
        ("message", "string", "", "last line of what went wrong, else null"),
    ),
)
BY_NAME = {column.name: column for column in COLUMNS}
PROBED: tuple[str, ...] = tuple(
    name for name in BY_NAME if name.startswith(("prior_", "gfid", "probe")) and name != "probe_protocol"
)
"""Columns of generation probes, of which only those of one probe_protocol may be compared."""

LARGEST_INT = 2**63 - 1


def fits(column: Column, value: object) -> bool:
    """Return whether ``column`` can hold ``value``. Every column of an evaluation but step and protocol can be null."""
    if value is None:
        return column.name not in ("step", "protocol")
    if column.type == "list<float64>":
        return isinstance(value, list) and all(_number(entry) for entry in value)
    if column.type == "float64":
        return _number(value)
    if column.type == "int64":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
    return isinstance(value, bool if column.type == "bool" else str)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# The columns that must be equal bit for bit if two tables report the same science.
SCIENCE_COLUMNS: tuple[str, ...] = (
    "signature",
    "step",
    *(c.name for c in COLUMNS if c.role in ("axis", "derived", "metric", "protocol")),
    "images_seen",
)


# By default pandas reads integers with nulls as floats and booleans with nulls as objects. This metadata, in the format
# of pyarrow.Table.from_pandas, makes it keep the types.
NULLABLE = {"int64": "Int64", "bool": "boolean"}


def _nullable(columns: Iterable[Column]) -> list[dict[str, Any]]:
    return [
        {"name": c.name, "field_name": c.name, "pandas_type": c.type, "numpy_type": NULLABLE[c.type], "metadata": None}
        for c in columns
        if c.type in NULLABLE
    ]


def _with(extra: Iterable[Column]) -> tuple[Column, ...]:
    """Every column of a table; one in ``extra`` stands for that of its name, whose type it has."""
    named = {**BY_NAME, **{column.name: column for column in extra}}
    return tuple(named.values())


def arrow_schema(extra: Iterable[Column] = ()) -> pa.Schema:
    """Return the pyarrow schema, with units and descriptions in the field metadata and the version in the schema's.

    extra: columns of one table beside those of every table, or in their place.
    """
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "list<float64>": pa.list_(pa.float64()),
    }
    fields = [
        pa.field(c.name, types[c.type], metadata={"unit": c.unit, "role": c.role, "description": c.description})
        for c in _with(extra)
    ]
    nullable = {"index_columns": [], "column_indexes": [], "columns": _nullable(_with(extra))}
    return pa.schema(fields, metadata={"gsq_schema_version": str(SCHEMA_VERSION), "pandas": json.dumps(nullable)})


def describe(path: Path | None = None) -> tuple[Column, ...]:
    """Return the columns of the results table or, given a file, those that its field metadata describes.

    Raises SchemaError if the file is not a Parquet file with a unit and a description of each column.
    """
    if path is None:
        return COLUMNS
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = []
    for field in _read(pq.read_schema, path):
        about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        if not {"unit", "description", "role"} <= about.keys():
            raise SchemaError(f"{path}: its column '{field.name}' has no description; gsq did not write it")
        kind = "list<float64>" if pa.types.is_list(field.type) else str(field.type).replace("double", "float64")
        columns.append(Column(field.name, kind, about["unit"], about["role"], about["description"]))  # type: ignore[arg-type]
    return tuple(columns)


# Rows that are turned into columns at a time, which keeps the others out of memory; and how many times that are a group
# of rows of the file.
CHUNK, GROUP = 1_000, 10


def write_table(rows: Iterable[Mapping[str, object]], path: Path, extra: Mapping[str, Column] | None = None) -> None:
    """Write rows (column name to value; absent values are null) to ``path`` atomically, also from several processes.

    extra: columns beside those of every table; ``rows`` can add to it while it is read.

    Raises ValueError if two rows have the same key (sweep, signature, step, protocol) and probe.
    """
    import pyarrow as pa

    extra = {} if extra is None else extra
    # Hashes of 64 bits take a tenth of the memory of keys; two of a million keys share one once in 10^7 tables.
    seen: set[int] = set()
    remaining, tables = iter(rows), list[pa.Table]()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, closing(RowGroups(partial)) as groups:
        while chunk := list(islice(remaining, CHUNK)):
            for row in chunk:
                if unknown := row.keys() - BY_NAME.keys() - extra.keys():
                    raise ValueError(f"columns {sorted(unknown)} are not in the schema")
                key = tuple(row.get(name) for name in (*KEY, "probe_protocol"))
                if hash(key) in seen:
                    raise ValueError(f"two rows have the key {dict(zip(KEY, key, strict=False))}")
                seen.add(hash(key))
            columns = _with(extra.values())
            schema = arrow_schema(extra.values())
            cells = [array([row.get(c.name) for row in chunk], schema.field(c.name).type) for c in columns]
            tables.append(compact(pa.table(cells, schema=schema)))
            if len(tables) == GROUP:
                groups.write(tables, schema)
                tables = []
        if tables or not seen:
            groups.write(tables, arrow_schema(extra.values()))


def replace_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet, whole or not at all."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        pq.write_table(table, partial)


def _read(read: Callable[[Path], Any], path: Path) -> Any:
    import pyarrow as pa

    try:
        return read(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def read_table(path: Path) -> pd.DataFrame:
    """Read a results table as pandas, with nullable integers (Int64) and booleans (boolean).

    Columns newer than the file are null. Raises SchemaError if the file is not a results table or has another schema
    version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _read(pq.read_table, path)
    found = (table.schema.metadata or {}).get(b"gsq_schema_version", b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise SchemaError(
            f"{path}: results table of schema version {found}; this gsq reads version {SCHEMA_VERSION}. "
            "Make it again from the run folders: gsq gather SWEEP"
        )
    # A file of this version may still be older than some columns.
    for field in arrow_schema():
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    frame = table.to_pandas()
    for column in COLUMNS:
        if column.type in NULLABLE:  # Older files lack the pandas metadata.
            frame[column.name] = frame[column.name].astype(NULLABLE[column.type])
    return frame

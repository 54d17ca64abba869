"""Write the training curves of a sweep's runs to one Parquet file beside the results table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.errors import UserError
from gsq.outputs import output_problem
from gsq.records.folder import RunFolder
from gsq.records.read import read_metrics
from gsq.sweeps.planning.cells import collector_paused
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder
from gsq.sweeps.schema.columns import replace_table
from gsq.sweeps.tables.gather import RESULTS

if TYPE_CHECKING:
    import pyarrow as pa

CURVES_VERSION = 1
# Unit and description of what gsq.training.trainer logs.
QUANTITIES = {
    "loss": ("", "weighted sum of the autoencoder's losses"),
    "mse": ("", "mean squared error, images in [-1, 1]"),
    "quantizer": ("", "loss of the quantizer: commitment, codebook, entropy"),
    "perceptual": ("", "perceptual loss, not weighted"),
    "adversarial": ("", "adversarial loss of the autoencoder, not weighted"),
    "adaptive_weight": ("", "factor of the adversarial loss, from gradient norms"),
    "gradient_norm": ("", "gradient norm of the autoencoder before clipping"),
    "loss_d": ("", "weighted sum of the discriminator's losses"),
    "discriminator": ("", "adversarial loss of the discriminator"),
    "lecam": ("", "LeCAM regularisation, not weighted"),
    "gradient_penalty": ("", "gradient penalty (R1), not weighted"),
    "real_logit": ("", "mean logit of real images"),
    "fake_logit": ("", "mean logit of reconstructions"),
    "gradient_norm_d": ("", "gradient norm of the discriminator before clipping"),
    "images_per_second": ("images/s", "training images a second since the line before"),
    "loader_wait_seconds": ("s", "time that a step waited for its images, mean since the line before"),
}
# Rows turned into columns at a time.
CHUNK = 100_000


def curves_path(table: Path) -> Path:
    """Return the file of the curves that belong to a results table."""
    return table.with_name(f"{table.stem}-curves.parquet")


@collector_paused()
def gather_curves(sweep: str | SweepFolder, output: Path | None = None, runs: Path | None = None) -> Path:
    """Write the training curves of a sweep, by default results/<sweep>-curves.parquet, and return its path.

    The table has a row for each logged step of each planned cell that has trained: ``signature`` and ``step``, which
    join it with the results table, then a float64 column for each logged quantity, with unit and description in the
    field metadata. Null means that a run did not log a value, NaN that it logged NaN. If several attempts logged a
    step, the newest counts. The file is replaced whole. Raises UserError for an unknown sweep, and if the file is a
    results table, named <sweep>-curves.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = sweep_folder(sweep, runs)
    path = output or curves_path(RESULTS / f"{folder.name}.parquet")
    if problem := output_problem(path):
        raise UserError(f"training curves {path} {problem}")
    with suppress(OSError, pa.ArrowInvalid):
        if b"gsq_schema_version" in (pq.read_schema(path).metadata or {}):
            raise UserError(f"{path}: is a results table, which training curves must not replace; name another file")
    tables = [pa.table(columns) for columns in _chunks(folder)]
    table = pa.concat_tables(tables, promote_options="default")
    known = ["signature", "step", *(name for name in QUANTITIES if name in table.column_names)]
    table = table.select([*known, *sorted(set(table.column_names) - set(known))])
    fields = [_field(field.name, field.type) for field in table.schema]
    replace_table(table.cast(pa.schema(fields, metadata={"gsq_curves_version": str(CURVES_VERSION)})), path)
    return path


def _chunks(folder: SweepFolder) -> Iterator[dict[str, Any]]:
    """Yield the columns of some runs at a time; the first chunk has no rows."""
    import pyarrow as pa

    signatures: list[str] = []
    steps: list[int] = []
    values: dict[str, list[float | None]] = {}

    def columns() -> dict[str, Any]:
        padded = {name: column + [None] * (len(steps) - len(column)) for name, column in values.items()}
        return {
            "signature": pa.array(signatures, pa.string()),
            "step": pa.array(steps, pa.int64()),
            **{name: pa.array(column, pa.float64()) for name, column in padded.items()},
        }

    yield columns()
    for cell in folder.read_plan().cells:
        for line in read_metrics(RunFolder.of(folder.runs, cell.signature)):
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float):
                    column = values.setdefault(name, [])
                    column += [None] * (len(steps) - len(column))
                    column.append(value)
            signatures.append(cell.signature)
            steps.append(int(line["step"]))
        if len(steps) >= CHUNK:
            yield columns()
            for held in (signatures, steps, values):
                held.clear()
    yield columns()


def _field(name: str, kind: pa.DataType) -> pa.Field:
    import pyarrow as pa

    about = {
        "signature": ("", "key", "identity of the run, as in the results table"),
        "step": ("steps", "key", "optimiser steps done"),
    }
    logged = QUANTITIES.get(name, ("", "logged in training"))
    unit, role, description = about.get(name, (logged[0], "curve", logged[1]))
    return pa.field(name, kind, metadata={"unit": unit, "role": role, "description": description})

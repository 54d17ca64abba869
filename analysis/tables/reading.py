"""Read tables of other tools (text with separators, Parquet, Feather) as they were meant, or refuse them in words.

Python's csv reader splits a text into records and knows the line of each, so that gsq can refuse a record with too few
or too many values by its line number instead of shifting the others. pandas infers the types.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.words import counted

_UNPACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32"))
_WIDE_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# First bytes of files that are not text tables, what such a file is, and what to do about it.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save the sheet as CSV"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it first"),
    (b"\x89HDF", "an HDF5 file; write the table as Parquet or CSV"),
    (b"\x80\x04", "a Python pickle; write the table as Parquet or CSV"),
    (b"\x80\x05", "a Python pickle; write the table as Parquet or CSV"),
    (b"SQLite format 3", "an SQLite database; write the table as Parquet or CSV"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself (git lfs pull)"),
)
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
_FIRST = {".tsv": "\t,;|", ".tab": "\t,;|", ".csv": ",;\t|"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MISSING = frozenset(("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A", "-nan", "-NaN"))


def read_text(path: Path, text_columns: Callable[[Sequence[str]], Collection[str]] = lambda names: ()) -> pd.DataFrame:
    """Read a text table whose first line names the columns: CSV, tab-separated or with other separators, also gz, bz2
    or xz.

    ``text_columns``: picks, among the names in the header, the columns that hold text even where it looks like numbers.
    Raises AnalysisError for a file that is not such a table: empty, of another format or encoding, without a header,
    with two columns of one name, or with a line that has more or fewer values than the header has names (naming the
    line)."""
    text = _decoded(path).replace("\r\n", "\n").replace("\r", "\n")
    separator, records = _records(path, text)
    names, rows = _table(path, separator, records, text.split("\n"))
    fixed = {*text_columns(names)} & {*names}
    for i, name in enumerate(names):
        # Numbers that begin with a zero are names: 007 is not 7.
        if any(len(row[i]) > 1 and row[i][0] == "0" and row[i].isdigit() for row in rows):
            fixed.add(name)
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    file.seek(0)
    frame = pd.read_csv(
        file,
        names=names,
        header=None,
        index_col=False,
        dtype=dict.fromkeys(fixed, "str"),
        low_memory=False,
        skip_blank_lines=False,
    )
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names) if name not in fixed}
    marks = decimal_comma(columns.values()) if separator != "," else False
    for name, texts in columns.items():
        frame[name] = _typed(frame[name], texts, marks)
    return frame


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a Parquet file that another tool wrote. Named index levels become columns; categories, decimals and nested
    values become what they stand for (see :func:`plain_columns`). Raises AnalysisError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        refuse_twins(pq.read_schema(path).names, str(path))
        table = pq.read_table(path)
    except AnalysisError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise AnalysisError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    return _from_arrow(path, table)


def read_feather(path: Path) -> pd.DataFrame:
    """Read a Feather (Arrow IPC) file like :func:`read_parquet`."""
    import pyarrow as pa
    from pyarrow import feather

    try:
        table = feather.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise AnalysisError(f"{path}: not a readable Feather file ({str(error).splitlines()[0]})") from error
    return _from_arrow(path, table)


def _from_arrow(path: Path, table: object) -> pd.DataFrame:
    import pyarrow as pa

    assert isinstance(table, pa.Table)
    refuse_twins(table.column_names, str(path))
    try:
        frame = table.to_pandas()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise AnalysisError(f"{path}: pandas cannot hold this table ({str(error).splitlines()[0]})") from error
    named = [name for name in frame.index.names if name is not None and name not in frame]
    frame = frame.reset_index(named) if named else frame
    return plain_columns(frame.reset_index(drop=True))


def refuse_twins(names: Sequence[object], where: str) -> None:
    """Raise AnalysisError where two columns have one name."""
    twins = [name for name, count in Counter(map(str, names)).items() if count > 1]
    if twins:
        places = [str(i + 1) for i, name in enumerate(names) if str(name) == twins[0]]
        raise AnalysisError(
            f"{where}: {len(places)} columns are called {twins[0]!r} (columns {', '.join(places)}); rename or remove "
            "all but one"
        )


def plain_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with categories as their values, decimals as float64, lists and dictionaries as JSON text, and the
    names of its columns as text, as formulas have them.

    Groups and counts need plain values: a category that no row has would count as a group.
    """
    if not all(isinstance(name, str) for name in frame) or isinstance(frame.columns, pd.CategoricalIndex):
        frame = frame.set_axis([str(name) for name in frame], axis=1)
    changed: dict[str, pd.Series] = {}
    for name in frame.columns:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            changed[name] = column.astype(object).infer_objects()
        elif column.dtype == object or str(column.dtype).startswith(("decimal", "list", "struct", "map")):
            kind = pd.api.types.infer_dtype(column, skipna=True)
            if kind == "decimal" or str(column.dtype).startswith("decimal"):
                changed[name] = column.astype("float64")
            elif column.map(lambda value: isinstance(value, dict | list | tuple | set | np.ndarray)).any():
                changed[name] = column.map(_as_json)
    if changed:
        frame = frame.copy(deep=False)
        for name, column in changed.items():
            frame[name] = column
    return frame


def _as_json(value: object) -> object:
    if not isinstance(value, dict | list | tuple | set | np.ndarray):
        return value
    named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return json.dumps(value, default=_listed, sort_keys=named)


def _listed(value: object) -> object:
    """What JSON has no form for: arrays and sets as lists, anything else as text."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return sorted(value, key=str) if isinstance(value, set) else str(value)


def _decoded(path: Path) -> str:
    """The text of a file, unpacked and without a byte order mark."""
    try:
        data = path.read_bytes()
        for magic, unpack in _UNPACK.items():
            if data.startswith(magic):
                data = unpack(data)
                break
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read ({error})") from error
    for magic, what in _OTHERS:
        if data.startswith(magic):
            raise AnalysisError(f"{path}: not a table of text but {what}")
    encoding = next((name for mark, name in (*_MARKS, *_WIDE_MARKS) if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\x00" in data[:1000]:
        even, odd = data[0:1000:2].count(0), data[1:1000:2].count(0)
        encoding = "utf-16-le" if odd > 2 * even else "utf-16-be" if even > 2 * odd else encoding
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise AnalysisError(
            f"{path}: not text in {encoding.upper()} (byte {data[error.start]:#04x} at {error.start}). "
            'Save it as UTF-8 (in Excel: "CSV UTF-8")'
        ) from error
    if "\x00" in text:
        raise AnalysisError(f"{path}: not a table of text (it holds zero bytes)")
    text = text.lstrip("\ufeff")
    if not text.strip():
        raise AnalysisError(f"{path}: the file is empty; a table has a line of column names and a line for each row")
    if text.lstrip()[:1] in "{[<":
        kind = "HTML or XML" if text.lstrip()[0] == "<" else "JSON"
        raise AnalysisError(f"{path}: looks like {kind}, not like a table; write it as CSV or Parquet")
    return text


Records = list[tuple[int, list[str]]]
"""Line number and values of each record."""


def _records(path: Path, text: str) -> tuple[str, Records]:
    """The separator of a text, and its records but blank lines, comments before the header and Excel's "sep="."""
    skipped, lines = 0, text.split("\n")
    told = ""
    while skipped < len(lines) and (not lines[skipped].strip() or re.match(r"\s*#|sep=.$", lines[skipped])):
        if found := re.match(r"sep=(.)$", lines[skipped]):
            told = found[1]
        skipped += 1
    if skipped == len(lines):
        raise AnalysisError(f"{path}: there is nothing but comments; a table needs a line of column names")
    rest = "\n".join(lines[skipped:])
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".bz2", ".xz")]
    order = told or _FIRST.get(suffixes[-1] if suffixes else "", "\t,;| ")
    separator, best = order[0], 0
    for one in order:
        header, *sample = [row for _, row in _split(path, rest, one, 100)] or [[]]
        agree = 1 + sum(len(row) == len(header) for row in sample) if len(header) > 1 else 0
        if agree > best:
            separator, best = one, agree
    records = [(line + skipped, row) for line, row in _split(path, rest, separator)]
    width = len(records[0][1])
    body = [(n, row) for n, row in records[1:] if not (row[0].lstrip().startswith("#") and len(row) != width)]
    if width == 1 and len(records[0][1][0].split()) > 1 and separator != " ":
        raise AnalysisError(
            f"{path}: the first line, {records[0][1][0][:60]!r}, has none of the separators of such a file "
            f"({', '.join(SEPARATORS[one] for one in order)}); separate its values by them, or call it .txt where "
            "spaces separate them"
        )
    return separator, [records[0], *body]


def _split(path: Path, text: str, separator: str, most: int | None = None) -> Records:
    """Records of a text, blank ones left out; at most so many. Raises AnalysisError for an open quote."""
    file = io.StringIO(text, newline="")
    if separator == " ":
        lines = iter([re.sub(r"[ \t]+", " ", line).strip() + "\n" for line in text.split("\n")])
        reader = csv.reader(lines, delimiter=" ", strict=True)
    else:
        reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
    found: Records = []
    begins = 1
    try:
        for row in reader:
            if any(value.strip() for value in row):
                found.append((begins, [value.strip() for value in row]))
            begins = reader.line_num + 1
            if most is not None and len(found) >= most:
                break
    except csv.Error as error:
        if most is not None:
            return found
        raise AnalysisError(
            f"{path}: line {begins}: a quote is not closed, or stands within a value ({error})"
        ) from None
    return found


def _table(path: Path, separator: str, records: Records, lines: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and the values of each row, equally many."""
    (line, names), body = records[0], records[1:]
    rows = [row for _, row in body]
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    if names and len(numbers) == len(names):
        raise AnalysisError(
            f"{path}: line {line} should name the columns, and holds numbers: {', '.join(names[:6])}. Put a line of "
            "names first" + (", without # before it" if line > 1 else "")
        )
    if not rows:
        raise AnalysisError(f"{path}: there are no rows, only the names of columns: {', '.join(names[:8])}")
    wide = len(names) + 1
    if all(len(row) == wide for row in rows):
        if all(not row[-1] for row in rows):  # a separator too many at each end
            rows = [row[:-1] for row in rows]
        elif all(lines[at - 1].startswith('"') for at, _ in body) or (separator == " " and lines[line - 1][0] == " "):
            names = ["row", *names]  # names of rows, as R and pandas print them: quoted, or below an indented header
    for number, (at, _) in enumerate(body):
        if len(rows[number]) != len(names):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            found = ", ".join(rows[number][:8])
            raise AnalysisError(
                f"{path}: line {at} has {counted(len(rows[number]), 'value')} where {len(names)} columns are named "
                f"({shown}): {found}. Values are taken to be separated by "
                f"{SEPARATORS.get(separator, repr(separator))}; an empty one keeps its separator"
            )
    empty = [not name and all(not row[i] for row in rows) for i, name in enumerate(names)]
    if any(empty):
        names = [name for name, out in zip(names, empty, strict=True) if not out]
        rows = [[value for value, out in zip(row, empty, strict=True) if not out] for row in rows]
    names = [name or f"column {i + 1}" for i, name in enumerate(names)]
    refuse_twins(names, str(path))
    return names, rows


def decimal_comma(columns: Collection[Sequence[str]]) -> bool:
    """Whether numbers are written with a decimal comma: some value can be read in no other way."""
    clear = re.compile(r"[+-]?(\d{4,},\d+|0,\d+|\d*,(\d{1,2}|\d{4,}))([eE][+-]?\d+)?|[+-]?\d{1,3}(\.\d{3})+,\d+")
    return any(clear.fullmatch(value) for column in columns for value in column)


def _typed(column: pd.Series, texts: Sequence[str], comma: bool) -> pd.Series:
    """A column as pandas read it, or better: integers with empty cells stay integers, and marks between thousands are
    taken away where they can be nothing else. What is in doubt stays text, for ``table.numbers`` to refuse."""
    known = [text for text in texts if text not in _MISSING]
    if not known:
        return column
    points = [text for text in known if "." in text]
    if comma and points and all(re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?", text) for text in points):
        pass  # beside decimal commas, a full stop stands between thousands
    elif pd.api.types.is_float_dtype(column.dtype):
        if np.isinf(column).any() and any(_NUMBER.fullmatch(text) and np.isinf(float(text)) for text in known):
            return pd.Series(texts, index=column.index, dtype="str").where(column.notna())  # 1e400 is a name
        if all(re.fullmatch(r"[+-]?\d+", text) for text in known) and max(map(len, known)) < 19:
            whole = [None if text in _MISSING else int(text) for text in texts]
            return pd.Series(whole, index=column.index, dtype="Int64")
        return column
    elif pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        return column
    if all(text in ("True", "False", "TRUE", "FALSE", "true", "false") for text in known):
        flags = [None if text in _MISSING else text.lower() == "true" for text in texts]
        return pd.Series(flags, index=column.index, dtype="boolean")
    plain = _without_marks(known, comma)
    if plain is None:
        return column
    values = iter(plain)
    return pd.Series([np.nan if text in _MISSING else next(values) for text in texts], index=column.index)


def _without_marks(known: Sequence[str], comma: bool) -> list[float] | None:
    """Numbers written with marks between thousands or with a decimal comma; None where they are not, or in doubt."""
    group, point = (r"[. '\u00a0\u202f\u2019]", ",") if comma else (r"[, '\u00a0\u202f\u2019]", ".")
    grouped = re.compile(rf"[+-]?\d{{1,3}}(?:({group})\d{{3}})+(?:{re.escape(point)}\d+)?")
    plain = re.compile(rf"[+-]?(\d+{re.escape(point)}?\d*|{re.escape(point)}\d+)([eE][+-]?\d+)?")
    if not all(plain.fullmatch(text) or grouped.fullmatch(text) for text in known):
        return None
    marked = [text for text in known if not plain.fullmatch(text)]
    # One group behind a comma may be a fraction: 1,234.
    twofold = re.compile(r"[+-]?\d{1,3}[,.]\d{3}")
    if marked and not comma and all(twofold.fullmatch(text) for text in marked):
        return None
    if not marked and not comma:
        return None  # plain numbers, which pandas had its reasons to leave as text: they do not fit an integer
    return [float(re.sub(group, "", text).replace(point, ".")) for text in known]

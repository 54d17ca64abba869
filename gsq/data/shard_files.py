"""The shards of a data set: found below a folder, sorted by split, and complete as far as their numbers tell."""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from gsq.data.listing import in_order, walk
from gsq.data.manifest import LeftOut
from gsq.errors import Missing, UserError

SUFFIXES = {"webdataset": (".tar",), "huggingface": (".parquet", ".arrow")}
# Words of a shard's path that name its split.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


class Shard(NamedTuple):
    path: Path
    name: str
    """Path below the data set's root, with forward slashes."""
    split: str
    """train, validation, test or empty, from its path."""


def list_shards(kind: str, root: Path) -> tuple[list[Shard], list[LeftOut]]:
    """The shards to read, and the files left out. Raises UserError if there are no shards or some are missing, and
    Missing if the whole folder is missing."""
    suffixes = SUFFIXES[kind]
    if root.is_file():
        if root.suffix.lower() not in suffixes:
            raise UserError(f"data.path: {root} is no {' or '.join(suffixes)} file, which data.kind {kind} needs")
        return [Shard(root, root.name, "")], []
    if not root.is_dir():
        hint = "; fetch what is on the hub first: hf download --repo-type dataset ID --local-dir FOLDER"
        raise Missing(
            f"data.path: {root} is neither a folder of {' or '.join(suffixes)} shards nor one of them"
            f"{hint if kind == 'huggingface' else ''}"
        )
    shards, left_out = _found(kind, root, suffixes)
    if not shards:
        compressed = next((one.name for one in left_out if one.reason == "compressed"), None)
        hint = f"; {compressed} is compressed, and only a plain tar can be read at any place" if compressed else ""
        raise UserError(f"data.path: {root} holds no shards ({', '.join(suffixes)}), in no subfolder either{hint}")
    kinds = Counter(shard.path.suffix.lower() for shard in shards)
    if len(kinds) > 1:
        counts = " and ".join(f"{n} {suffix}" for suffix, n in kinds.items())
        raise UserError(f"data.path: {root} holds {counts} files; name the folder of those to use")
    _require_all(root, [shard.path for shard in shards])
    wanted = {shard.split for shard in shards} & {"train", "validation"}
    if not wanted:
        return shards, left_out
    # If training shards are marked, shards marked otherwise or not at all are something else.
    known = {"train", "validation"} if len(wanted) == 2 else {*wanted, ""}
    left_out += [
        LeftOut(shard.name, "split", f"shards of {shard.split}" if shard.split else "shards of no split")
        for shard in shards
        if shard.split not in known
    ]
    return [shard for shard in shards if shard.split in known], left_out


def _found(kind: str, root: Path, suffixes: tuple[str, ...]) -> tuple[list[Shard], list[LeftOut]]:
    shards: list[Shard] = []
    left_out: list[LeftOut] = []
    for entry in sorted(walk(root), key=lambda entry: in_order(entry.name)):
        lower = entry.name.lower()
        # cache-*.arrow are the intermediate results of datasets.map and its like.
        if lower.endswith(suffixes) and not Path(entry.name).name.startswith("cache-"):
            if entry.kind:
                left_out.append(LeftOut(*entry[:3]))
            else:
                shards.append(Shard(root / entry.name, entry.name, split_of(entry.name)))
        elif entry.kind in ("link", "unreadable") and not Path(lower).suffix:
            # It could be a folder of shards.
            left_out.append(LeftOut(*entry[:3]))
        elif kind == "webdataset" and not entry.kind and lower.endswith(_COMPRESSED):
            left_out.append(LeftOut(entry.name, "format", "compressed"))
    return shards, left_out


def split_of(name: str) -> str:
    """train, validation, test or empty, from the last part of a path that names a split."""
    for part in reversed(Path(name).with_suffix("").parts):
        found = {SPLITS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLITS}
        if len(found) == 1:
            return found.pop()
    return ""


def _require_all(root: Path, shards: list[Path]) -> None:
    """Raise UserError if the shards' numbers show that some are missing."""
    numbered: dict[tuple[Path, str, str], list[str]] = {}
    for shard in shards:
        match = re.fullmatch(r"(.*?)(\d+)(-of-\d+.*)?", shard.stem)
        if match:
            prefix, number, of = match.groups()
            # Hashes after the total differ between shards.
            total = re.match(r"-of-\d+", of)[0] if of else ""  # type: ignore[index]
            numbered.setdefault((shard.parent, prefix, total), []).append(number)
    for (folder, prefix, total), digits in numbered.items():
        numbers = set(map(int, digits))
        if total:
            expected = range(int(total[4:]))
        elif _count_shards(prefix, digits):
            expected = range(min(numbers), max(numbers) + 1)
        else:
            continue
        # A set of all numbers could be huge, since a total can be any number.
        missing = len(expected) - sum(number in expected for number in numbers)
        if missing:
            first = list(islice((number for number in expected if number not in numbers), 8))
            listed = ", ".join(map(str, first)) + (", ..." if missing > 8 else "")
            where = (folder / f"{prefix}*").relative_to(root)
            raise UserError(
                f"data.path: {root}: {missing} of the {len(expected)} shards {where} are missing "
                f"(number {listed}); fetch them, or rename the others if you want only these"
            )


# If more shards than this are missing for each that exists, the numbers mean something else.
MOST_MISSING = 100


def _count_shards(prefix: str, digits: list[str]) -> bool:
    """Whether numbers at the end of names, without a total, count shards rather than being dates or identifiers."""
    numbers = set(map(int, digits))
    if len(numbers) < 2 or _dates(prefix, digits):
        return False
    length = max(numbers) - min(numbers) + 1
    # Counted from the start, or written with zeros before them, or with few gaps.
    from_the_start = min(numbers) <= 1 or any(number[0] == "0" for number in digits)
    return length <= (MOST_MISSING if from_the_start else 2) * len(numbers)


# Dates that a number can be, by its digits, and dates of several parts at the end of a name: 2023-01-05, 2023-W07,
# 20230105T123000, 2023-01-05_12-30.
_STAMPS = {
    4: ("%Y",),
    6: ("%Y%m",),
    8: ("%Y%m%d", "%d%m%Y", "%m%d%Y"),
    10: ("%Y%m%d%H",),
    12: ("%Y%m%d%H%M",),
    14: ("%Y%m%d%H%M%S",),
}
_DATE = re.compile(
    r"(?:^|.*\D)(?:19|20)\d\d[-_. ]?(?:(?:w|week|q)[-_. ]?\d\d?"
    r"|(?:(?:0[1-9]|1[0-2])|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*)"
    r"(?:[-_. ]?(?:0[1-9]|[12]\d|3[01])(?:[-_. t]*(?:[01]\d|2[0-3])(?:[-_.: ]?[0-5]\d){0,2})?)?)",
    re.IGNORECASE,
)


def _dates(prefix: str, digits: list[str]) -> bool:
    """Whether all numbers can be read as recent dates or times, or as the end of a date."""
    return all(map(_stamp, digits)) or all(_DATE.fullmatch(prefix + number) for number in digits)


def _stamp(digits: str) -> bool:
    # Seconds or milliseconds since 1970, from 2001 on.
    if len(digits) in (10, 13) and 10**9 <= int(digits[:10]) < 4 * 10**9:
        return True
    for form in _STAMPS.get(len(digits), ()):
        try:
            if 1950 <= datetime.strptime(digits, form).year <= 2100:
                return True
        except ValueError:
            continue
    return False

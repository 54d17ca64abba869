"""End a process although a user's own part has left a thread running, for which Python would wait."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress

# How long a process waits for such threads [s].
PATIENCE = 10.0


def end_without_threads(code: object) -> None:
    """Let this process end with ``code`` after PATIENCE, even if threads are then still running.

    Call it last. code: as of SystemExit. Threads that end in time, exit functions and daemons are as always.
    """
    if not _running():
        return

    def watch() -> None:
        time.sleep(PATIENCE)
        if not (names := _running()):
            return
        print(
            f"warning: {', '.join(names)}: still running after {PATIENCE:g} s, so gsq ends without waiting any longer; "
            "a thread of your own part should be a daemon, or end with it",
            file=sys.stderr,
        )
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))

    threading.Thread(target=watch, daemon=True).start()


def _running() -> list[str]:
    """Names of the threads that Python would wait for."""
    return [one.name for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]

"""For all tests."""

from __future__ import annotations

import signal

# A shell without a terminal ignores SIGINT for what it starts in the background, and programs inherit it: none that a
# test starts would hear Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

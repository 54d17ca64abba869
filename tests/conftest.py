"""For all tests."""

from __future__ import annotations

import signal

# A shell without a terminal ignores SIGINT for what it starts in the background, nohup ignores SIGHUP, and programs
# inherit it: none that a test starts would hear Ctrl-C or that its terminal was closed.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

"""The error that every function of this room raises on bad input."""

from __future__ import annotations

from collections.abc import Mapping


class AnalysisError(ValueError):
    """A table, law or option that cannot be used; the message says what was received, what is allowed and
    the likely fix. The command line prints it as one line and leaves with ``exit_code``."""

    exit_code = 2


def together(reasons: Mapping[str, str]) -> AnalysisError:
    """The error of several laws of which none can be used, each reason once."""
    return AnalysisError("; ".join(dict.fromkeys(reasons.values())))

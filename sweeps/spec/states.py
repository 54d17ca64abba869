"""The states of a cell, and who resumes a run that has failed."""

from __future__ import annotations

from collections.abc import Mapping

from gsq.records.attempt import DONE, FAILED, PRUNED, RUNNING

PLANNED, QUEUED, CANCELLED = "planned", "queued", "cancelled"
STATES = (PLANNED, QUEUED, RUNNING, DONE, PRUNED, FAILED)

# Who resumes a failed run from its last checkpoint: the queue itself; the next submission (after the user has freed
# disk space or cancelled); or only a request (--retry), because another attempt would fail in the same way. A run that
# is out of memory also resumes as long as its micro-batch can be halved.
RESUME = {
    "preempted": "itself",
    "node_failure": "itself",
    "timeout": "itself",
    "lost": "itself",
    "disk_full": "submit",
    CANCELLED: "submit",
    "out_of_memory": "request",
    "diverged": "request",
    "error": "request",
}
WHO = ("itself", "submit", "request")


def resumed_classes(who: str, resume: Mapping[str, str] = RESUME) -> frozenset[str]:
    """Failure classes that ``who`` resumes, including those that need less."""
    return frozenset(failure for failure, by in resume.items() if WHO.index(by) <= WHO.index(who))


RESUMED, RESUMED_ON_SUBMIT = resumed_classes("itself"), resumed_classes("submit")

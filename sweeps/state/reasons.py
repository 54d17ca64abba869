"""Explain why a job waits, from SLURM's reason (squeue's %r), and whether the reason goes away by itself."""

from __future__ import annotations

import re

# The first pattern that matches a reason, in lower case without spaces and underscores, gives the words.
# Reasons that last until somebody changes the job, the partition or the limit:
_FOR_EVER = (
    (r"partitiondown", "the partition is down"),
    (r"partitioninactive", "the partition is inactive"),
    (r"partition(node|time)limit|partitionconfig", "the job asks for more than the partition allows"),
    (r"dependencyneversatisfied", "a job that it depends on has failed or is unknown"),
    (r"jobheldadmin", "an administrator holds it"),
    (r"joblaunchfailure|.*held.*|.*hold|jobholdmaxrequeue", "it is held; scontrol release frees it"),
    (r"invalidaccount|accountnotallowed", "the account may not use this partition"),
    (r"invalidqos|qosnotallowed", "the QOS may not be used here"),
    (r"badconstraints", "no node has what the job asks for"),
    (r"reservationdeleted|invalidreservation", "its reservation is gone"),
    (r"qosusagethreshold", "the account's usage is below the threshold of the QOS"),
    (r"deadline", "it cannot end before its deadline"),
    (r"qosmin.*", "the job asks for less than the QOS demands"),
    (r".*per(job|node)(limit)?|.*maxwall.*|maxmemperlimit", "the job asks for more than a limit allows"),
    (r"(?!.*run).*minutes(limit)?|.*grpwall.*|(qos|association)timelimit", "the granted time is used up"),
)
# Reasons that last as long as other jobs run:
_UNTIL_OTHERS_END = ((r"(?!jobarraytask).*limit|(assoc|qos)grp.*|.*per(user|account)", "they use up what it allows"),)
# Reasons that go away by themselves:
_FOR_NOW = (
    (r"jobarraytasklimit", "as many jobs run as `parallel` in the cluster file allows"),
    (r"reqnodenotavail.*|nodedown.*|nodesrequiredforjob.*", "nodes that it needs are down, drained or reserved"),
    (r"begintime", "it was requeued or has a later start"),
    (r"dependency", "it waits for another job"),
)


def waits_for_ever(reason: str | None) -> bool:
    """Return whether a waiting job will not start unless somebody changes something."""
    return reason is not None and _words(reason, _FOR_EVER) is not None


def explained(reason: str | None) -> str | None:
    """Return a reason with its meaning: ``will not start: PartitionDown (the partition is down)``; None for none."""
    kinds = {"will not start: ": _FOR_EVER, "will not start until other jobs end: ": _UNTIL_OTHERS_END, "": _FOR_NOW}
    for start, table in kinds.items():
        if reason is not None and (words := _words(reason, table)):
            return f"{start}{reason} ({words})"
    return reason


def _words(reason: str, table: tuple[tuple[str, str], ...]) -> str | None:
    plain = re.sub(r"[\s_]", "", reason).lower()
    return next((words for pattern, words in table if re.fullmatch(pattern, plain)), None)

"""Why a job waits, from SLURM's reason for it (squeue's %r): in words, and whether it goes away by itself."""

from __future__ import annotations

import re

# The first pattern that fits a reason, without spaces and underscores and in lower case, gives the words.
# What keeps a job from ever starting, unless somebody changes the job, the partition or the limit:
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
# What keeps a job from starting as long as other jobs run:
_UNTIL_OTHERS_END = ((r"(?!jobarraytask).*limit|(assoc|qos)grp.*|.*per(user|account)", "they use up what it allows"),)
# What goes away by itself:
_FOR_NOW = (
    (r"jobarraytasklimit", "as many jobs run as `parallel` in the cluster file allows"),
    (r"reqnodenotavail.*|nodedown.*|nodesrequiredforjob.*", "nodes that it needs are down, drained or reserved"),
    (r"begintime", "it was requeued or has a later start"),
    (r"dependency", "it waits for another job"),
)


def waits_for_ever(reason: str | None) -> bool:
    """Whether a waiting job will not start unless somebody changes something."""
    return reason is not None and _words(reason, _FOR_EVER) is not None


def explained(reason: str | None) -> str | None:
    """SLURM's reason with its meaning, ``will not start: PartitionDown (the partition is down)``; None without one."""
    if reason is None:
        return None
    if words := _words(reason, _FOR_EVER):
        return f"will not start: {reason} ({words})"
    if words := _words(reason, _UNTIL_OTHERS_END):
        return f"will not start until other jobs end: {reason} ({words})"
    words = _words(reason, _FOR_NOW)
    return f"{reason} ({words})" if words else reason


def _words(reason: str, table: tuple[tuple[str, str], ...]) -> str | None:
    plain = re.sub(r"[\s_]", "", reason).lower()
    return next((words for pattern, words in table if re.fullmatch(pattern, plain)), None)

"""SLURM's reasons for waiting, in words."""

from __future__ import annotations

import pytest

from gsq.sweeps.state.reasons import explained, waits_for_ever

NEVER = (
    "PartitionDown",
    "PartitionInactive",
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "JobHeldUser",
    "JobHeldAdmin",
    "JobHoldMaxRequeue",
    "launch failed requeued held",
    "job requeued in held state",
    "DependencyNeverSatisfied",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "QOSNotAllowed",
    "AccountNotAllowed",
    "QOSMaxCpuPerJobLimit",
    "QOSMaxWallDurationPerJobLimit",
    "AssocMaxNodePerJobLimit",
    "MaxMemPerLimit",
    "AssocGrpCPUMinutesLimit",
    "AssocGrpBillingMinutes",
    "QOSGrpGRESMinutes",
    "QOSUsageThreshold",
    "ReservationDeleted",
    "QOSMinCpuNotSatisfied",
    "AssocGrpWallLimit",
)
UNTIL_OTHERS_END = (
    "QOSMaxJobsPerUserLimit",
    "AssocGrpCpuLimit",
    "AssocGrpCPURunMinutesLimit",
    "QOSGrpNodeLimit",
    "QOSMaxGRESPerUser",
    "AssocGrpGRES",
    "QOSResourceLimit",
    "AssocMaxJobsLimit",
)
FOR_NOW = (
    "Priority",
    "Resources",
    "BeginTime",
    "Dependency",
    "Licenses",
    "Reservation",
    "JobArrayTaskLimit",
    "ReqNodeNotAvail, UnavailableNodes:n[1-2]",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
    "SomethingNewOfSLURM30",
)


@pytest.mark.parametrize("reason", NEVER)
def test_what_does_not_go_away_by_itself(reason: str) -> None:
    said = explained(reason)
    assert waits_for_ever(reason) and said is not None and "will not start" in said and reason in said


@pytest.mark.parametrize("reason", UNTIL_OTHERS_END)
def test_a_limit_that_others_use_up(reason: str) -> None:
    said = explained(reason)
    assert not waits_for_ever(reason) and said is not None and reason in said
    assert said.startswith("will not start until")


@pytest.mark.parametrize("reason", FOR_NOW)
def test_what_goes_away(reason: str) -> None:
    said = explained(reason)
    assert not waits_for_ever(reason) and said is not None and "will not start" not in said and reason in said


def test_no_reason() -> None:
    assert explained(None) is None and not waits_for_ever(None)

"""Files and processes of the test cluster of cluster.py: what its daemons are told, their ports, their steps."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import zlib
from collections.abc import Sequence
from pathlib import Path


class ClusterError(RuntimeError):
    """The cluster cannot be started or stopped; the message says why, and what to do."""


# cred_expire also sets how long a requeued job waits; AccountingStoragePass tells the clients of slurmdbd the
# munge socket; config_overrides: the nodes are what is said here, even on a smaller host
SLURM_CONF = """\
ClusterName=gsq
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
AuthInfo=socket={dir}/munge/munge.socket,cred_expire=5
StateSaveLocation={dir}/state
SlurmctldLogFile={dir}/log/controller.log
SlurmctldPidFile={dir}/run/slurmctld.slurm-pid
SlurmdSpoolDir={dir}/spool/%n
SlurmdPidFile={dir}/run/%n.slurm-pid
SlurmdLogFile={dir}/log/%n-steps.log
SlurmdParameters=config_overrides
SlurmdTimeout=20
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={dir}/munge/munge.socket
SchedulerParameters=sched_interval=1,bf_interval=1
JobRequeue=1
ReturnToService=2
DebugFlags=NO_CONF_HASH
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=2 RealMemory=8000
PartitionName=test Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""
SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser=root
AuthInfo=socket={dir}/munge/munge.socket
PidFile={dir}/run/slurmdbd.slurm-pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""
# slurmd reads it even though no plugin here uses cgroups; v1 is the plugin that sets nothing up by itself
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n"
DATABASE_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE OR REPLACE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
"""


def free_ports(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Free ports below the ones that the kernel hands out, from a start that differs between folders."""
    ports: list[str] = []
    for port in range(20000 + zlib.crc32(str(folder).encode()) % 8000, 32000):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("", port))
            ports.append(str(port))
        if len(ports) == len(names):
            return dict(zip(names, ports, strict=True))
    raise ClusterError("there are too few free ports below 32000")


def write(path: Path, text: str, mode: int, owner: str | None = None) -> None:
    path.touch(mode=mode)  # so that a secret is never open to others
    path.chmod(mode)
    path.write_text(text)
    if owner:
        shutil.chown(path, owner, owner)


def born(pid: int) -> str | None:
    """The time at which a process started, in the kernel's ticks; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def steps(spool: Path) -> list[int]:
    """The slurmstepd processes of this cluster, known by slurmd's working folder, and all below them."""
    parents: dict[int, int] = {}
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            is_step = (entry / "comm").read_text().startswith("slurmstepd")
            if is_step and Path(os.readlink(entry / "cwd")).is_relative_to(spool):
                found.append(int(entry.name))
    for pid in found:  # it grows as it is read
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return found

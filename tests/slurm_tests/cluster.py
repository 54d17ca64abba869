"""A real two-node SLURM cluster on this one host, for tests.

    python tests/slurm_tests/cluster.py start          # 3 to 10 s; where it runs already, says so
    eval "$(python tests/slurm_tests/cluster.py env)"  # sets SLURM_CONF for sinfo, sbatch, srun, submitit
    sinfo
    python -m pytest tests/slurm_tests
    python tests/slurm_tests/cluster.py stop           # cancels all jobs, ends every daemon by process id

The cluster is one munged, mariadbd, slurmdbd and slurmctld, and a slurmd for each of the nodes n1 and n2.
All their files lie in one folder (--dir; logs in its log/), their ports are free ones found at each start.
The folder's database and job numbers outlive a stop: after a stop, remove the folder to begin anew.

It needs root (slurmd starts jobs as their users) and Debian's packages munge, mariadb-server, slurmdbd,
slurmctld, slurmd and slurm-client, but none of their services, nor cgroups or systemd. Several clusters can
run at a time, each with its own --dir. Each node has 2 CPUs and 8000 MB, whatever this host has; a job that
asks for no memory gets 1000 MB a CPU, and one that takes more than its share is killed within seconds (as
FAILED: without cgroups SLURM never says OUT_OF_MEMORY).

Times that a test meets: a job requeued by scontrol starts again after about 6 s (cred_expire=5 below; 2
minutes by default); a node whose slurmd is gone is DOWN after some 30 s, and idle once that is back.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

NODES = ("n1", "n2")
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", *NODES)  # each needs the ones before it
PACKAGES = {"munged": "munge", "mariadbd": "mariadb-server", "slurmdbd": "slurmdbd"}
PACKAGES |= {"slurmctld": "slurmctld", "slurmd": "slurmd", "sacctmgr": "slurm-client"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# cred_expire also sets how long a requeued job waits; AccountingStoragePass tells the clients of slurmdbd the
# munge socket; config_overrides: the nodes are what is said here, even on a smaller host
SLURM_CONF = """\
ClusterName=gsq
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
AuthInfo=socket={dir}/munge/munge.socket,cred_expire=5
StateSaveLocation={dir}/state
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

_children: list[subprocess.Popen[bytes]] = []


class ClusterError(RuntimeError):
    """The cluster cannot be started or stopped; the message says why, and what to do."""


class Cluster:
    """The cluster whose files lie in one folder, running or not."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.dir = Path(folder or Path(tempfile.gettempdir()) / "gsq-slurm").resolve()
        self.conf = self.dir / "etc" / "slurm.conf"

    def pid(self, name: str) -> int | None:
        """The process id of a daemon of this cluster; None where it does not run."""
        try:
            pid, born = (self.dir / "run" / f"{name}.pid").read_text().split()
        except (OSError, ValueError):
            return None
        # the time of birth tells a daemon from a later process that got the same id
        return int(pid) if _born(int(pid)) == born else None

    def running(self) -> bool:
        """Whether every daemon lives and the controller answers."""
        return all(self.pid(name) for name in DAEMONS) and "UP" in self.output("scontrol", "ping")

    def output(self, *command: str) -> str:
        """What a client command prints with this cluster's SLURM_CONF; empty where it fails."""
        env = {"PATH": PATH, "SLURM_CONF": str(self.conf)}
        run = partial(subprocess.run, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return str(run(command, env=env, timeout=15).stdout)
        return ""

    def start(self) -> bool:
        """Start it and wait until both nodes are idle; False where it runs already."""
        if os.geteuid() != 0:
            raise ClusterError("starting the cluster needs root: slurmd starts jobs as their users")
        if missing := [package for name, package in PACKAGES.items() if not shutil.which(name, path=PATH)]:
            raise ClusterError(f"Debian packages are missing:\n  apt-get install -y {' '.join(missing)}")
        if not re.fullmatch(r"[A-Za-z0-9_./-]{1,70}", str(self.dir)):
            raise ClusterError(f"{self.dir}: --dir must be at most 70 plain characters (sockets lie in it)")
        self.dir.mkdir(parents=True, exist_ok=True)
        fresh = not any(self.dir.iterdir())
        if self.dir.stat().st_uid != 0 or not (fresh or (self.dir / "lock").exists()):
            raise ClusterError(f"{self.dir} holds other things or is another user's; choose another --dir")
        self.dir.chmod(0o755)  # munged and mariadbd run as users of their own
        with self._lock():
            if self.running():
                return False
            self._stop()  # what a crash may have left
            try:
                self._start()
            except BaseException:
                self._stop()
                raise
            return True

    def stop(self) -> bool:
        """Cancel the jobs and end every daemon; False where nothing ran."""
        if not (self.dir / "run").is_dir():
            return False
        if os.geteuid() != 0:
            raise ClusterError("stopping the cluster needs root")
        with self._lock():
            return self._stop()

    def kill(self, name: str) -> None:
        """End one daemon as a crash would; the steps of a slurmd run on."""
        if pid := self.pid(name):
            os.kill(pid, signal.SIGKILL)
            while self.pid(name):
                time.sleep(0.01)

    def end(self, name: str) -> None:
        """End one daemon in good order: slurmctld saves its state."""
        self._end(name)

    def bring_back(self, name: str) -> None:
        """Start a slurmctld or slurmd again that was ended, and wait until it answers or has registered."""
        if name not in NODES:
            self._spawn(name, name, "-D")
            self._wait(name, lambda: "UP" in self.output("scontrol", "ping"))
            return
        before = self._slurmd_start(name)
        while self._slurmd_start(name) >= time.strftime("%Y-%m-%dT%H:%M:%S"):
            time.sleep(0.1)  # It counts in seconds.
        self._spawn(name, "slurmd", "-D", "-N", name)
        self._wait(name, lambda: self._slurmd_start(name) > before)

    def renumber(self, first: int) -> None:
        """Give the next jobs the numbers from ``first`` on, as a new controller would; accounting keeps what it has.
        No job may wait or run."""
        # What the controller has not told accounting yet is in its state.
        self._wait("slurmctld", lambda: "DBD Agent queue size: 0" in self.output("sdiag"))
        self._end("slurmctld")
        shutil.rmtree(self.dir / "state")
        (self.dir / "state").mkdir()
        lines = [line for line in self.conf.read_text().splitlines() if not line.startswith("FirstJobId=")]
        _write(self.conf, "\n".join([*lines, f"FirstJobId={first}", ""]), 0o644)
        self.bring_back("slurmctld")
        for node in NODES:
            self._wait(node, partial(self._idle, node))

    def _slurmd_start(self, name: str) -> str:
        """When the slurmd of a node was started, as the controller knows it."""
        found = re.search(r"SlurmdStartTime=([0-9T:-]+)", self.output("scontrol", "show", "node", name))
        return found[1] if found else ""

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.dir / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self) -> None:
        for name in ("etc", "log", "run", "munge", "db", "state", *(f"spool/{node}" for node in NODES)):
            (self.dir / name).mkdir(parents=True, exist_ok=True)
        values = {"host": socket.gethostname().split(".")[0], "dir": str(self.dir)}
        values |= {"password": secrets.token_hex(16), **_free_ports(self.dir, DAEMONS[1:])}
        _write(self.conf, SLURM_CONF.format(**values), 0o644)
        _write(self.dir / "etc" / "cgroup.conf", CGROUP_CONF, 0o644)
        _write(self.dir / "etc" / "slurmdbd.conf", SLURMDBD_CONF.format(**values), 0o600)
        _write(self.dir / "db" / "init.sql", DATABASE_SQL.format(**values), 0o600, "mysql")

        self._start_munged(self.dir / "munge")
        self._start_mariadbd(self.dir / "db", values["mariadbd"])
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._wait("slurmdbd", lambda: "billing" in self.output("sacctmgr", "-n", "show", "tres"))
        # slurmctld asks for its cluster's record as it starts
        known = self.output("sacctmgr", "-n", "show", "cluster", "gsq").strip()
        if not (known or self.output("sacctmgr", "-i", "add", "cluster", "gsq")):
            raise ClusterError(self._tail("slurmdbd", "sacctmgr add cluster failed"))
        self._spawn("slurmctld", "slurmctld", "-D")
        self._wait("slurmctld", lambda: "UP" in self.output("scontrol", "ping"))
        self._cancel_jobs()  # the saved state has them after a crash
        for node in NODES:
            self._spawn(node, "slurmd", "-D", "-N", node)
        for node in NODES:
            self._wait(node, partial(self._idle, node))

    def _start_munged(self, folder: Path) -> None:
        if not (folder / "munge.key").exists():
            _write(folder / "munge.key", secrets.token_hex(64), 0o600, "munge")
        shutil.chown(folder, "munge", "munge")
        files = [f"--{kind}-file={folder}/munged.{kind}" for kind in ("pid", "log", "seed")]
        files += [f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
        self._spawn("munged", "munged", "--foreground", *files, user="munge")
        self._wait("munged", lambda: bool(self.output("munge", "-n", "-S", f"{folder}/munge.socket")))

    def _start_mariadbd(self, folder: Path, port: str) -> None:
        shutil.chown(folder, "mysql", "mysql")
        common = ["--no-defaults", f"--datadir={folder}/data"]
        if not (folder / "installed").exists():
            shutil.rmtree(folder / "data", ignore_errors=True)
            self._spawn("mariadbd", "mariadb-install-db", *common, "--user=mysql", "--skip-test-db")
            if _children[-1].wait() != 0:
                raise ClusterError(self._tail("mariadbd", "mariadb-install-db failed"))
            (folder / "installed").touch()
        options = [f"--socket={folder}/mysql.sock", f"--pid-file={folder}/mysql.pid", f"--port={port}"]
        options += ["--bind-address=127.0.0.1", "--skip-name-resolve", f"--init-file={folder}/init.sql"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"]
        options += ["--innodb-use-native-aio=0"]  # containers may forbid it
        self._spawn("mariadbd", "mariadbd", *common, *options, user="mysql")
        ping = ["mariadb-admin", "--no-defaults", f"--socket={folder}/mysql.sock", "ping"]
        self._wait("mariadbd", lambda: bool(self.output(*ping)))

    def _spawn(self, name: str, *command: str, user: str | None = None) -> None:
        """Start one daemon in the foreground of a session of its own, with log/NAME.log and run/NAME.pid."""
        log = self.dir / "log" / f"{name}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.old"))
        with log.open("wb") as file:
            process = subprocess.Popen(
                [shutil.which(command[0], path=PATH) or command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.dir / "spool" / name if name in NODES else self.dir,  # see _steps
                env={"PATH": PATH, "SLURM_CONF": str(self.conf), "LC_ALL": "C.UTF-8"},
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        _children.append(process)
        _write(self.dir / "run" / f"{name}.pid", f"{process.pid} {_born(process.pid)}\n", 0o644)

    def _wait(self, name: str, ready: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if self.pid(name) is None:
                raise ClusterError(self._tail(name, f"{name} ended as it started"))
            if time.monotonic() > deadline:
                raise ClusterError(self._tail(name, f"{name} was not ready after {seconds:.0f} s"))
            time.sleep(0.1)

    def _tail(self, name: str, what: str) -> str:
        log = self.dir / "log" / f"{name}.log"
        return "\n  ".join([f"{what}; {log} ends with:", *log.read_text(errors="replace").splitlines()[-12:]])

    def _idle(self, node: str) -> bool:
        return self.output("sinfo", "-h", "-N", "-n", node, "-o", "%T").split() == ["idle"]

    def _cancel_jobs(self) -> None:
        if jobs := self.output("squeue", "-h", "-a", "-o", "%A").split():
            self.output("scancel", *sorted(set(jobs)))

    def _stop(self) -> bool:
        if self.pid("slurmctld"):
            self._cancel_jobs()
            deadline = time.monotonic() + 20
            while any(map(self.pid, NODES)) and self.output("squeue", "-h", "-a"):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.2)
        ended = self._end(*NODES)
        for pid in _steps(self.dir / "spool"):  # no slurmd can start more by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                ended = True
        for name in reversed(DAEMONS[:4]):
            ended |= self._end(name)
        return ended

    def _end(self, *names: str) -> bool:
        """End these daemons and wait until they are gone; False where none ran."""
        pids = {name: pid for name in names if (pid := self.pid(name))}
        for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            deadline = time.monotonic() + patience
            for name, pid in pids.items():
                if self.pid(name):
                    os.kill(pid, number)
            while any(map(self.pid, pids)) and time.monotonic() < deadline:
                time.sleep(0.05)
        if left := {name: pid for name, pid in pids.items() if self.pid(name)}:
            raise ClusterError(f"these processes do not end: {left}")
        for name in names:
            (self.dir / "run" / f"{name}.pid").unlink(missing_ok=True)
        for child in _children:
            child.poll()  # reaps it, where one process starts and stops the cluster
        return bool(pids)


def _born(pid: int) -> str | None:
    """The time at which a process started, in the kernel's ticks; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _steps(spool: Path) -> list[int]:
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


def _free_ports(folder: Path, names: Sequence[str]) -> dict[str, str]:
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


def _write(path: Path, text: str, mode: int, owner: str | None = None) -> None:
    path.touch(mode=mode)  # so that a secret is never open to others
    path.chmod(mode)
    path.write_text(text)
    if owner:
        shutil.chown(path, owner, owner)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop", "status", "env"])
    parser.add_argument("--dir", help=f"the cluster's folder (default: {Cluster().dir})")
    args = parser.parse_args()
    cluster = Cluster(args.dir)
    export = f"export SLURM_CONF={shlex.quote(str(cluster.conf))}"
    began = time.monotonic()
    try:
        if args.action == "start":
            what = "started" if cluster.start() else "it is running already"
            print(f"{what} ({time.monotonic() - began:.1f} s); to use it:\n  {export}")
        elif args.action == "stop":
            what = "stopped" if cluster.stop() else "nothing was running"
            print(f"{what} ({time.monotonic() - began:.1f} s)")
        else:
            running = cluster.running()
            if args.action == "env":
                print(export)
            else:
                for name in DAEMONS:
                    print(f"{name:10} {cluster.pid(name) or 'not running'}")
                print(cluster.output("sinfo", "-N"), end="")
            if not running:
                print(f"the cluster in {cluster.dir} does not run; start it first", file=sys.stderr)
            return 0 if running else 1
    except ClusterError as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cluster_files import (
    CGROUP_CONF,
    DATABASE_SQL,
    SLURM_CONF,
    SLURMDBD_CONF,
    ClusterError,
    born,
    free_ports,
    steps,
    write,
)

NODES = ("n1", "n2")
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", *NODES)  # each needs the ones before it
PACKAGES = {"munged": "munge", "mariadbd": "mariadb-server", "slurmdbd": "slurmdbd"}
PACKAGES |= {"slurmctld": "slurmctld", "slurmd": "slurmd", "sacctmgr": "slurm-client"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_children: list[subprocess.Popen[bytes]] = []


class Cluster:
    """The cluster whose files lie in one folder, running or not."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.dir = Path(folder or Path(tempfile.gettempdir()) / "gsq-slurm").resolve()
        self.conf = self.dir / "etc" / "slurm.conf"

    def pid(self, name: str) -> int | None:
        """The process id of a daemon of this cluster; None where it does not run."""
        try:
            pid, birth = (self.dir / "run" / f"{name}.pid").read_text().split()
        except (OSError, ValueError):
            return None
        # the time of birth tells a daemon from a later process that got the same id
        return int(pid) if born(int(pid)) == birth else None

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
        write(self.conf, "\n".join([*lines, f"FirstJobId={first}", ""]), 0o644)
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
        values |= {"password": secrets.token_hex(16), **free_ports(self.dir, DAEMONS[1:])}
        write(self.conf, SLURM_CONF.format(**values), 0o644)
        write(self.dir / "etc" / "cgroup.conf", CGROUP_CONF, 0o644)
        write(self.dir / "etc" / "slurmdbd.conf", SLURMDBD_CONF.format(**values), 0o600)
        write(self.dir / "db" / "init.sql", DATABASE_SQL.format(**values), 0o600, "mysql")

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
            write(folder / "munge.key", secrets.token_hex(64), 0o600, "munge")
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
        with (self.dir / "log" / f"{name}.log").open("ab") as file:
            process = subprocess.Popen(
                [shutil.which(command[0], path=PATH) or command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.dir / "spool" / name if name in NODES else self.dir,  # see steps
                env={"PATH": PATH, "SLURM_CONF": str(self.conf), "LC_ALL": "C.UTF-8"},
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        _children.append(process)
        write(self.dir / "run" / f"{name}.pid", f"{process.pid} {born(process.pid)}\n", 0o644)

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

    def node_state(self, node: str) -> str:
        """``idle``, ``mixed*``, ``down*`` and so on; empty where the controller does not answer.

        All nodes are asked for: SLURM answers a question about one of them by what it last counted for all, and may say
        ``mixed*`` for minutes of a node that it has given up.
        """
        lines = self.output("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines).get(node, "")

    def _idle(self, node: str) -> bool:
        return self.node_state(node) == "idle"

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
        for pid in steps(self.dir / "spool"):  # no slurmd can start more by now
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

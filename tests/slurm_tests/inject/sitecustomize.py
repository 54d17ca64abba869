"""Python imports this when it starts with this folder on PYTHONPATH: how faults.py gets into jobs and drivers.

gsq has no hook for it. In a job, ``$GSQ_FAULTS/orders/<signature>/`` holds what is to go wrong, one file an order,
taken by renaming it; gsq's functions are wrapped as they are imported, and the order is carried out at its moment.
What the process cannot do to itself it asks of the harness: it writes ``$GSQ_FAULTS/requests/<order>.json``, and goes
on once ``.done`` stands beside it.
"""

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(os.environ.get("GSQ_FAULTS", "/nonexistent"))
# These leave the attempt alive, which then takes its next order.
HARMLESS = ("clock", "controller", "slurmd", "second_attempt", "squeue_silent")
# The harness carries these out.
ASKED = ("scancel", "requeue", "preempt", "walltime", "walltime_hang", "node_failure", *HARMLESS[1:])
real_time = time.time
# Set by the clock that steps backwards.
clock_offset = 0.0


class Orders:
    """What is to happen to this process."""

    def __init__(self) -> None:
        self.signature, self.run, self.attempt = "", Path(), 0
        self.order, self.file, self.steps, self.busy = {}, Path(), 0, False
        self.slow_until, self.pause, self.trainer, self.job = 0.0, 0.4, None, ""

    def begin(self, signature, runs):
        """Called as the attempt begins, before it has a folder."""
        self.signature, self.run = signature, Path(runs) / signature[:2] / signature
        job = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
        self.job = "_".join(job) if all(job) else os.environ.get("SLURM_JOB_ID", "")
        self.take()

    def note(self, what):
        """That this process begins or ends an attempt, and who is in the middle of one of the same run."""
        others = (
            sorted(process for process in _training(self.signature) if _alive(*process)) if what == "begins" else []
        )
        line = {"signature": self.signature, "pid": os.getpid(), "born": _born(os.getpid())}
        line |= {"job": self.job, "time": real_time()}
        with (ROOT / "attempts.jsonl").open("a") as file:
            file.write(json.dumps({**line, "what": what, "others": others}) + "\n")

    def take(self):
        """The first order that nobody has, or that died with its process."""
        self.order, self.steps = {}, 0
        folder = ROOT / "orders" / self.signature
        for path in sorted(folder.glob("*")) if folder.is_dir() else []:
            name, _, state = path.name.partition(".")
            if state == "json" or (state.startswith("taken-") and not _alive(int(state[6:]))):
                mine = folder / f"{name}.taken-{os.getpid()}"
                with contextlib.suppress(FileNotFoundError):
                    path.rename(mine)
                    self.order, self.file = json.loads(mine.read_text()), mine
                    return

    def reach(self, moment):
        """Carry the order out if this is its moment."""
        if self.busy or not self.order or self.order["moment"] != moment:
            return
        self.busy = True
        try:
            self.fire()
        finally:
            self.busy = False

    def fire(self):
        kind, name = self.order["kind"], f"{self.signature}-{self.file.name.partition('.')[0]}"
        fired = self.file.with_name(self.file.name.partition(".")[0] + ".fired")
        facts = {**self.order, "signature": self.signature, "attempt": self.attempt, "job": self.job}
        facts |= {"pid": os.getpid(), "node": os.environ.get("SLURMD_NODENAME", ""), "time": real_time()}
        fired.with_suffix(".partial").write_text(json.dumps(facts))
        fired.with_suffix(".partial").rename(fired)
        self.file.unlink()
        self.order = {}
        if kind in ASKED:
            self.ask(name, facts, kind)
        else:
            getattr(self, f"do_{kind}")()
        if kind in HARMLESS:
            self.take()

    def ask(self, name, facts, kind):
        if kind == "walltime_hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT})
        request = ROOT / "requests" / f"{name}.json"
        request.with_suffix(".partial").write_text(json.dumps(facts))
        request.with_suffix(".partial").rename(request)
        deadline = time.monotonic() + 120
        while not request.with_suffix(".done").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if kind == "walltime_hang":
            time.sleep(150)
        elif kind not in HARMLESS:
            # What was asked for reaches this process in its own time: it goes on, but slowly.
            # SLURM takes long to give a node up.
            self.slow_until, self.pause = time.monotonic() + 90, 2.0 if kind == "node_failure" else 0.4

    def step(self, trainer):
        """Before each step."""
        if time.monotonic() < self.slow_until:
            time.sleep(self.pause)
        self.steps += 1
        self.trainer = trainer
        if self.order and self.steps > self.order.get("after", 0):
            self.reach("step")

    def do_kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def do_truncate(self):
        """The newest checkpoint of the run loses its end, and the process dies."""
        found = sorted(self.run.glob("attempts/*/checkpoint-*.pt"), key=lambda p: p.name)
        for path in found[-1:]:
            os.truncate(path, path.stat().st_size // 2)
        self.do_kill()

    def folder(self):
        return self.run / "attempts" / str(self.attempt)

    def do_torn_line(self):
        with (self.folder() / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "loss": 0.3')
        self.do_kill()

    def do_stale(self):
        """What processes leave that die while they write."""
        folder = self.folder()
        (folder / f".status.json.{os.getpid()}.partial").write_text('{"state": "do')
        (folder / "checkpoint-00000059.partial").write_bytes(b"PK" + bytes(1000))
        (folder / "checkpoint-00000058.pt").write_bytes(b"PK" + bytes(1000))
        (folder / ".checkpoint-00000058.json.1.partial").write_text("{")
        (folder / "evaluations").mkdir(exist_ok=True)
        (folder / "evaluations" / f".0-00000020.json.{os.getpid()}.partial").write_text("{")
        self.do_kill()

    def do_memory_error(self):
        raise MemoryError("injected")

    def do_error(self):
        raise RuntimeError("injected")

    def do_allocate(self):
        """Until SLURM kills the job."""
        import numpy

        held, deadline = [], time.monotonic() + 90
        while time.monotonic() < deadline:
            if len(held) < 15:
                held.append(numpy.ones(25 << 20))
            time.sleep(0.05)
        raise RuntimeError("nobody minds 3 GB")

    def do_nan(self):
        self.trainer.last_layer.data.fill_(float("nan"))

    def do_clock(self):
        global clock_offset
        clock_offset = -3600.0

    def do_full_disk(self):
        with contextlib.suppress(OSError), (self.run.parent.parent / "ballast").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))


def _training(signature):
    """Processes that have begun an attempt and not said that it ended; they may be dead."""
    found = set()
    with contextlib.suppress(OSError):
        for line in map(json.loads, (ROOT / "attempts.jsonl").read_text().splitlines()):
            if line["signature"] == signature:
                (found.add if line["what"] == "begins" else found.discard)((line["pid"], line["born"]))
    return found


def _born(pid):
    """When a process started, in the kernel's ticks; None for one that is gone or a zombie."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]


def _alive(pid, born=None):
    """born: tells the process from a later one that was given its number."""
    now = _born(pid)
    return now is not None and born in (None, now)


orders = Orders()


def _before(module, name, moment):
    """Reach a moment whenever a function is called."""
    original = getattr(module, name)

    def wrapper(*args, **kwargs):
        orders.reach(moment)
        return original(*args, **kwargs)

    setattr(module, name, wrapper)


def _patch_run(module):
    original, new_attempt = module.execute, module.RunFolder.new_attempt

    def execute(config, runs, **kwargs):
        orders.begin(module.identity(config), runs)
        orders.reach("start")
        try:
            return original(config, runs, **kwargs)
        finally:
            orders.note("ends")

    def numbered(folder):
        attempt = new_attempt(folder)
        orders.attempt = attempt.number
        orders.note("begins")
        orders.reach("attempt")
        return attempt

    module.execute = execute
    module.RunFolder.new_attempt = numbered


def _patch_training(module):
    original = module.Trainer.step

    def step(trainer):
        orders.step(trainer)
        return original(trainer)

    module.Trainer.step = step


def _patch_checkpoint(module):
    write = module._HashingFile.write

    def halfway(file, data):
        if file.size:
            orders.reach("checkpoint")
        return write(file, data)

    module._HashingFile.write = halfway
    _before(module, "write_json", "checksum")
    _before(module, "remove_all", "done")


def _patch_evaluation(module):
    original = module.evaluate_all

    def evaluate_all(*args, **kwargs):
        orders.reach("evaluation")
        trainer = orders.trainer
        if trainer is not None and trainer.step_count == trainer.config.train.steps:
            # Training was over before the time of the order had come.
            orders.reach("step")
        return original(*args, **kwargs)

    module.evaluate_all = evaluate_all


PATCHES = {
    "gsq.runs.execute": _patch_run,
    "gsq.training.trainer": _patch_training,
    "gsq.training.checkpoint": _patch_checkpoint,
    "gsq.evaluation.evaluate": _patch_evaluation,
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


if ROOT.is_dir():
    time.time = lambda: real_time() + clock_offset
    sys.meta_path.insert(0, _Finder())


def _dry(log):
    """A gsq.runs.execute that trains nothing and imports no torch, for jobs that only say which cell they are."""
    import types
    from pathlib import Path as _Path

    def execute(config, runs, **kwargs):
        from gsq.runs.identity import identity

        with open(log, "a") as file:
            file.write(json.dumps({"runs": str(runs), "signature": identity(config)}) + "\n")
        return types.SimpleNamespace(path=_Path(runs))

    sys.modules["gsq.runs.execute"] = types.ModuleType("gsq.runs.execute")
    sys.modules["gsq.runs.execute"].execute = execute


# The driver has it in its environment, too, for its jobs, but runs none.
if os.environ.get("GSQ_FAULTS_DRY") and os.environ.get("SLURM_JOB_ID"):
    _dry(os.environ["GSQ_FAULTS_DRY"])

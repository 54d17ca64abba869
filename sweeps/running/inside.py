"""Start a SLURM job inside a container image: ``python3 inside.py SUBMISSION IMAGE``.

It is run as a file and imports nothing of gsq, so that an image in which gsq cannot run is named in one line, the last
one of the job's log. Any Python 3 can read it.
"""

import importlib.util
import runpy
import sys

LEAST = (3, 11)
NEEDED = (
    *(
        "torch",
        "submitit",
        "numpy",
        "yaml",
        "omegaconf",
        "PIL",
        "safetensors",
        "lazy_loader",
        "torchmetrics",
        "skimage",
    ),
    *("packaging", "simpleeval", "pooch"),
)


def main() -> None:
    entry, image = sys.argv[1:3]
    version = ".".join(map(str, sys.version_info[:3]))
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    problems = ["Python {} is older than 3.11".format(version)] if sys.version_info < LEAST else []  # noqa: UP032
    more = " and {} more".format(len(lacking) - 3) if len(lacking) > 3 else ""  # noqa: UP032
    problems += ["it lacks " + ", ".join(lacking[:3]) + more] if lacking else []
    if importlib.util.find_spec("gsq") is None:
        problems.append("PYTHONPATH does not reach it, so that it does not find the job's copy of gsq")
    if problems:
        # Flush and exit quietly: the last line of a job's log is what gsq status shows.
        sys.stdout.flush()
        sys.exit(
            "container: {}: gsq cannot run in {}; pip install gsq there, or name another Python with container.python "
            "(now {})".format("; ".join(problems), image, sys.executable)
        )
    sys.argv = ["submitit.core._submit", entry]
    runpy.run_module("submitit.core._submit", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Sweeps: spec, plan, submission, status and gathering.

    spec = load_spec("sweeps/configs/quickstart.yaml")
    submit(plan(spec), cluster="local")      # or "slurm", or a cluster file
    path = gather(spec.name)                 # results/quickstart.parquet
    cancel(spec.name, ["groups=4"])          # and retry, read_log, clean
    study = search("search-optimizer")       # the Optuna study of a search, for Optuna's plots

Names are imported on first use, so that ``from gsq import sweeps`` costs nothing.
"""

import lazy_loader

if __name__ == "sweeps":
    raise ImportError("this room is called gsq.sweeps: write `from gsq import sweeps`")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

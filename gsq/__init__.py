"""GSQ-GAN image tokenizers: one run, from its config to its evaluations.

    config = preset("cpu-tiny")
    folder = train(config, runs_root())

Names are imported on first use, so that ``import gsq`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gsq.autoencoder import Autoencoder
    from gsq.config import RunConfig
    from gsq.errors import UserError
    from gsq.evaluation import evaluate
    from gsq.loading import load_config, override
    from gsq.presets import PRESETS, preset
    from gsq.protocol import Protocol
    from gsq.quantizers import GroupedSphericalQuantizer, QuantizerOutput
    from gsq.record import RunFolder, runs_root
    from gsq.run import execute as train
    from gsq.tokenizer import Tokenizer

__version__ = "0.1.0"

_HOME = {
    "Autoencoder": ("autoencoder", "Autoencoder"),
    "GroupedSphericalQuantizer": ("quantizers", "GroupedSphericalQuantizer"),
    "PRESETS": ("presets", "PRESETS"),
    "Protocol": ("protocol", "Protocol"),
    "QuantizerOutput": ("quantizers", "QuantizerOutput"),
    "RunConfig": ("config", "RunConfig"),
    "RunFolder": ("record", "RunFolder"),
    "Tokenizer": ("tokenizer", "Tokenizer"),
    "UserError": ("errors", "UserError"),
    "evaluate": ("evaluation", "evaluate"),
    "load_config": ("loading", "load_config"),
    "override": ("loading", "override"),
    "preset": ("presets", "preset"),
    "runs_root": ("record", "runs_root"),
    "train": ("run", "execute"),
}

__all__ = [
    "PRESETS",
    "Autoencoder",
    "GroupedSphericalQuantizer",
    "Protocol",
    "QuantizerOutput",
    "RunConfig",
    "RunFolder",
    "Tokenizer",
    "UserError",
    "evaluate",
    "load_config",
    "override",
    "preset",
    "runs_root",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(importlib.import_module(f"gsq.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

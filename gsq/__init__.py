"""GSQ-GAN image tokenizers: one run, from its config to its evaluations.

    config = preset("cpu-tiny")
    folder = train(config, runs_root())

Names are imported on first use, so that ``import gsq`` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

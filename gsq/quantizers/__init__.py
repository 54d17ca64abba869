"""Quantizers turn latent vectors into codebook indices and back. All kinds share one interface.

A kind is one file here: its class, and the statement ``KINDS`` that declares it to config (``gsq.config.kinds``).
"""

from __future__ import annotations

from importlib import import_module

from gsq.config.parts import is_path, load
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.quantizers.base import NonFiniteLatent, Quantizer, QuantizerOutput
from gsq.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from gsq.quantizers.diveq import DirectionalQuantizer
from gsq.quantizers.finite_scalar import FiniteScalarQuantizer
from gsq.quantizers.ibq import IndexBackpropagationQuantizer
from gsq.quantizers.residual import ResidualQuantizer
from gsq.quantizers.simvq import MappedQuantizer
from gsq.quantizers.spherical import GroupedSphericalQuantizer

__all__ = [
    "BinarySphericalQuantizer",
    "DirectionalQuantizer",
    "FiniteScalarQuantizer",
    "GroupedSphericalQuantizer",
    "IndexBackpropagationQuantizer",
    "LookupFreeQuantizer",
    "MappedQuantizer",
    "NonFiniteLatent",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "build_quantizer",
    "check_counted",
]


def check_counted(quantizer: Quantizer, config: RunConfig) -> None:
    """Raise UserError if a quantizer of a user's own has other sizes of indices than plans and bits per pixel count."""
    if quantizer.index_sizes != config.index_sizes:
        raise UserError(
            f"quantizer.kind: index_sizes of {config.quantizer.kind} are {quantizer.index_sizes}, but plans and bits "
            f"per pixel count {config.index_sizes}; beside the class, declare KINDS = (Kind(..., index_sizes=lambda q: "
            "...),) with Kind of gsq.config.kinds"
        )


def build_quantizer(config: RunConfig) -> Quantizer:
    """The quantizer that ``config.quantizer.kind`` names: its class, in the file that declares the kind, or one of a
    user's own."""
    if is_path(config.quantizer.kind):
        own = load(config.quantizer.kind, "quantizer.kind")
        if not (isinstance(own, type) and issubclass(own, Quantizer)):
            raise UserError(
                f"quantizer.kind: '{config.quantizer.kind}' is not a subclass of gsq.quantizers.Quantizer, which "
                "defines what a quantizer is (gsq new quantizer FILE writes one to start from)"
            )
        built = own.build(config)
        built.own = config.quantizer.kind
        return built
    declared = config.quantizer.declared
    cls: type[Quantizer] = getattr(import_module(f"{__name__}.{declared.module}"), declared.cls)
    return cls.build(config)

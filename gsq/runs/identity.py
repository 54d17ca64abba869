"""The signature of a run from its config and the weights on this machine. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gsq.config.run import RunConfig
from gsq.config.signature import signature
from gsq.data.manifest import Manifest
from gsq.data.sources import manifest
from gsq.errors import Missing
from gsq.pretrained.required import training_weights
from gsq.pretrained.weights import weights_sha256


def identity(
    config: RunConfig,
    files: Manifest | None = None,
    sign: Callable[[RunConfig, str, Mapping[str, str]], str] = signature,
    absent: list[str] | None = None,
) -> str:
    """Signature of a run. files: the manifest, read if not given. sign: a gsq.config.signature.Signer for many configs.

    Raises Missing if the run trains with weights that are not here and have no published hash. With ``absent``, adds
    their names to that list instead, and the signature is provisional.
    """
    files = files or manifest(config.data)
    weights = {}
    for name in training_weights(config):
        try:
            weights[name] = weights_sha256(name)
        except Missing:
            if absent is None:
                raise
            weights[name] = "absent"
            absent.append(name)
    return sign(config, files.fingerprint, weights)

"""The signature of a run from its config and the weights on this machine. Imports no torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

from gsq.config.parts import imported, load, source_sha256
from gsq.config.program import ProgramConfig, plain
from gsq.config.run import RunConfig
from gsq.config.signature import digest, signature
from gsq.data.manifest import Manifest
from gsq.data.sources import manifest
from gsq.errors import Missing, UserError
from gsq.pretrained.required import training_weights
from gsq.pretrained.weights import weights_sha256

# Raise it by hand when a change of gsq changes what programs compute.
PROGRAM_VERSION = 1


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
    if isinstance(config, ProgramConfig):
        return program_identity(config, declared_data(config))
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


def declared_data(config: ProgramConfig) -> str:
    """The fingerprint of the data that a program declares: its module's function ``data(config)``, which returns
    ``gsq.fingerprint(path)``; empty if it declares none.

    Raises UserError if the function fails or returns something else than a text.
    """
    load(config.program, "program")
    declared = getattr(imported(config.program.partition(":")[0]), "data", None)
    if declared is None:
        return ""
    try:
        with redirect_stdout(sys.stderr):
            found = declared(plain(config.keys))
    except UserError as error:
        raise UserError(f"program: data() of {config.program}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"program: data() of {config.program} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, str) or not found:
        raise UserError(
            f"program: data() of {config.program} returned {found!r}; it must return text: gsq.fingerprint(path)"
        )
    return found


def _canonical(value: Any) -> Any:
    """1 and 1.0 are one value."""
    if isinstance(value, tuple):
        return [_canonical(one) for one in value]
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def program_identity(config: ProgramConfig, data: str) -> str:
    """Signature of a run: hash of program, free keys, source and data. data: from ``declared_data``."""
    return digest(
        {
            "program": config.program,
            "keys": {name: _canonical(value) for name, value in config.keys.items()},
            "source": source_sha256(config.program),
            "data": data,
            "program_version": PROGRAM_VERSION,
        }
    )

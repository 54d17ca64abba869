"""The signature of a run: a hash over everything that decides its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gsq.config import SECTIONS, RunConfig
from gsq.loading import to_dict

# Raised by hand when code changes the result of an unchanged config.
SCIENCE_VERSION = 2
SCIENCE_SECTIONS = ("model", "quantizer", "loss", "discriminator", "optimizer", "train", "data")


def science_dict(config: RunConfig, data_fingerprint: str, weights: Mapping[str, str]) -> dict[str, Any]:
    """What the signature hashes: resolved science sections, data fingerprint, sha256 of weights trained with."""
    plain = to_dict(config)
    science: dict[str, Any] = {}
    for name in SCIENCE_SECTIONS:
        section = plain[name]
        for f in fields(SECTIONS[name]):
            legacy = "legacy" in f.metadata and getattr(getattr(config, name), f.name) == f.metadata["legacy"]
            if legacy or not f.metadata.get("signed", True):
                del section[f.name]
        science[name] = section
    science["model"] |= {
        "channel_multipliers": list(config.model.multipliers),
        "encoder_blocks": list(config.model.encoder_depths),
        "decoder_blocks": list(config.model.decoder_depths),
    }
    del science["model"]["blocks"]
    science["quantizer"] |= {"lookup_norm": config.lookup_norm, "init": config.codebook_init}
    science["data"]["fingerprint"] = data_fingerprint
    science["weights"] = dict(weights)
    science["science_version"] = SCIENCE_VERSION
    return science


def digest(value: Any) -> str:
    """12 hex digits of sha256 over canonical JSON (sorted keys, no spaces, exact floats)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def signature(config: RunConfig, data_fingerprint: str, weights: Mapping[str, str]) -> str:
    """The run's identity: folder name and dedupe key across all sweeps."""
    return digest(science_dict(config, data_fingerprint, weights))

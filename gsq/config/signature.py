"""The signature of a run: a hash of everything that decides its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gsq.config.overrides import section_dict
from gsq.config.parts import TAKEN, changed_options, is_path, source_sha256
from gsq.config.run import SECTIONS, RunConfig

# Raise it by hand when code changes the result of an unchanged config.
SCIENCE_VERSION = 2
SCIENCE_SECTIONS = ("model", "quantizer", "loss", "discriminator", "optimizer", "train", "data")


def science_dict(config: RunConfig, data_fingerprint: str, weights: Mapping[str, str]) -> dict[str, Any]:
    """What the signature hashes: resolved science sections, data fingerprint, sha256 of the weights used in
    training."""
    science: dict[str, Any] = {name: _science_section(config, name, data_fingerprint) for name in SCIENCE_SECTIONS}
    return {**science, "weights": dict(weights), "science_version": SCIENCE_VERSION}


def _science_section(config: RunConfig, name: str, data_fingerprint: str) -> dict[str, Any]:
    section = getattr(config, name)
    plain = section_dict(section)
    for f in fields(SECTIONS[name]):
        legacy = "legacy" in f.metadata and getattr(section, f.name) == f.metadata["legacy"]
        if legacy or not f.metadata.get("signed", True):
            del plain[f.name]
    if name == "model":
        plain |= {
            "channel_multipliers": list(config.model.multipliers),
            "encoder_blocks": list(config.model.encoder_depths),
            "decoder_blocks": list(config.model.decoder_depths),
        }
        del plain["blocks"]
    if name == "quantizer":
        plain |= {"lookup_norm": config.lookup_norm, "init": config.codebook_init}
    own = getattr(section, _PART_OF[name]) if name in _PART_OF else ""
    if is_path(own):
        plain |= {
            "source": source_sha256(own),
            "options": changed_options(own, f"{name}.{_PART_OF[name]}", section.options),
        }
    if name == "data":
        plain["fingerprint"] = data_fingerprint
    return plain


# The key of each section that may name a part of a user's own, which its source and options then identify.
_PART_OF = dict(key.split(".") for key in TAKEN if not key.startswith("evaluation."))


def _canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces and exact floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest(value: Any) -> str:
    """12 hex digits of sha256 over canonical JSON (sorted keys, no spaces, exact floats)."""
    return _hash(_canonical(value))


class Signer:
    """``signature`` for many configs: makes the canonical JSON of a section that they share only once."""

    def __init__(self) -> None:
        # Keyed by what the text depends on. The section is kept too, so that no other object takes its id.
        self._texts: dict[tuple[object, ...], tuple[object, str]] = {}

    def __call__(self, config: RunConfig, data_fingerprint: str, weights: Mapping[str, str]) -> str:
        texts = {
            "weights": _canonical(dict(weights)),
            "science_version": _canonical(SCIENCE_VERSION),
        }
        for name in SCIENCE_SECTIONS:
            section = getattr(config, name)
            more: tuple[object, ...] = ()
            if name == "quantizer":
                more = (config.lookup_norm, config.codebook_init)
            elif name == "data":
                more = (data_fingerprint,)
            key = (name, id(section), *more)
            if key not in self._texts:
                self._texts[key] = section, _canonical(_science_section(config, name, data_fingerprint))
            texts[name] = self._texts[key][1]
        return _hash("{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}")


def signature(config: RunConfig, data_fingerprint: str, weights: Mapping[str, str]) -> str:
    """The run's identity: folder name and dedupe key across all sweeps. 12 hex digits of sha256 over the canonical
    JSON of ``science_dict``."""
    return Signer()(config, data_fingerprint, weights)

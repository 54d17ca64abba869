"""The signature: stable for ever, blind to how a run is carried out, sensitive to all that decides its result.

``python tests/gsq_tests/test_signature.py`` writes signatures.json anew. A diff there means that finished runs
are no longer found: only right where SCIENCE_VERSION was raised.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

import gsq.config.signature
from gsq import RunConfig, override, preset
from gsq.config.overrides import to_dict
from gsq.config.parts import Options
from gsq.config.quantizer import QuantizerConfig
from gsq.config.run import SECTIONS
from gsq.config.signature import SCIENCE_SECTIONS, Signer, digest, science_dict, signature
from gsq.runs.identity import identity

GOLDEN = Path(__file__).with_name("signatures.json")

PINNED: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("cpu-tiny", {}),
    "small": ("cpu-small", {}),
    "f8": ("paper-f8", {}),
    "f16": ("paper-f16", {}),
    "f32": ("paper-f32", {}),
    "seed": ("cpu-tiny", {"seed": 1}),
    "groups": ("cpu-tiny", {"groups": 4}),
    "scalar": ("cpu-tiny", {"groups": 16}),
    "latent": ("cpu-tiny", {"latent_dim": 8, "groups": 2}),
    "codebook": ("cpu-tiny", {"codebook_size": 1024}),
    "downsample": ("cpu-tiny", {"downsample": 2}),
    "width": ("cpu-tiny", {"width": 32}),
    "attention": ("cpu-tiny", {"model.attention": True, "model.blocks": 2}),
    "multipliers": ("cpu-tiny", {"model.channel_multipliers": [1, 1, 2]}),
    "upsample": ("cpu-tiny", {"model.upsample": "depth_to_space"}),
    "authors": ("cpu-tiny", {"quantizer.decoder_input": "raw", "quantizer.loss_row": "raw"}),
    "no-gan": ("cpu-tiny", {"discriminator.kind": "none", "loss.adversarial_weight": 0.0}),
    "no-perceptual": ("cpu-tiny", {"loss.perceptual": "none"}),
    "schedule": ("cpu-tiny", {"steps": 1000, "optimizer.warmup_steps": 100, "train.precision": "bfloat16"}),
    "deeper": ("paper-f16", {"model.encoder_blocks": [4, 3, 4, 3, 4, 4], "model.decoder_blocks": [3, 4, 3, 4, 4, 4]}),
}

# Another valid value of each science field, for BASE.
CHANGES: dict[str, Any] = {
    "model.downsample": 8,
    "model.latent_dim": 8,
    "model.channels": 32,
    "model.channel_multipliers": (1, 2, 4),
    "model.blocks": 2,
    "model.encoder_blocks": (1, 1, 1, 2),
    "model.decoder_blocks": (1, 2, 1, 1),
    "model.attention": True,
    "model.upsample": "depth_to_space",
    "model.adaptive_norm": False,
    "model.norm_groups": 4,
    "quantizer.kind": "vq",
    "quantizer.groups": 2,
    "quantizer.codebook_size": 257,
    "quantizer.depth": 2,
    "quantizer.levels": (256,) * 16,
    "quantizer.init": "uniform",
    "quantizer.lookup_norm": "none",
    "quantizer.lookup_precision": "bfloat16",
    "quantizer.codebook_update": "ema",
    "quantizer.codebook_decay": 0.9,
    "quantizer.entropy_weight": 0.1,
    "quantizer.decoder_input": "raw",
    "quantizer.loss_row": "raw",
    "quantizer.commitment_weight": 0.5,
    "quantizer.gradient": "rotation",
    "quantizer.soft_temperature": 0.5,
    "quantizer.soft_decay": 0.9,
    "quantizer.codebooks": "per_group",
    "quantizer.restart_below": 1.5,
    "quantizer.kmeans_steps": 3,
    "quantizer.codebook_weight": 0.7,
    "quantizer.direction_noise": 0.001,
    "loss.mse_weight": 2.0,
    "loss.perceptual": "none",
    "loss.perceptual_range": "unit",
    "loss.perceptual_weight": 0.5,
    "loss.adversarial_weight": 0.2,
    "loss.adaptive_weight": True,
    "loss.lecam_weight": 0.001,
    "loss.lecam_update": "before",
    "loss.gradient_penalty_weight": 1.0,
    "loss.generator_loss": "hinge",
    "loss.discriminator_loss": "vanilla",
    "loss.discriminator_start": 10,
    "discriminator.kind": "none",
    "discriminator.channels": 32,
    "discriminator.layers": 1,
    "discriminator.channel_multipliers": (2, 4),
    "discriminator.norm": "batch",
    "discriminator.augment": ("color",),
    "discriminator.image_range": "unit",
    "discriminator.batch": "new",
    "discriminator.init": "kaiming",
    "discriminator.norm_groups": 4,
    "optimizer.learning_rate": 2.0000001e-3,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.discriminator_betas": (0.5, 0.9),
    "optimizer.schedule": "cosine",
    "optimizer.decay_steps": 100,
    "optimizer.decay_share": 0.2,
    "optimizer.decay_shape": "one_minus_sqrt",
    "optimizer.final_learning_rate": 1e-5,
    "optimizer.weight_decay": 0.1,
    "optimizer.decay_everything": True,
    "optimizer.eps": 1e-7,
    "optimizer.warmup_steps": 1,
    "optimizer.gradient_clip": 0.0,
    "optimizer.ema_decay": 0.9,
    "optimizer.ema_warmup": False,
    "train.steps": 401,
    "train.batch_size": 16,
    "train.precision": "bfloat16",
    "train.seed": 1,
    "train.repeat": 1,
    "data.kind": "image_folder",
    "data.image_size": 64,
    "data.min_crop": 0.5,
    "data.max_crop": 3.0,
    "data.flip": False,
    "data.validation_share": 0.2,
    "model.kind": "gsq.templates.model:Mine",
    **{f"{section}.options": Options(size=1) for section in ("model", "quantizer", "loss", "discriminator", "data")},
}
BASE = preset("cpu-tiny")
# Where the images lie and how they are found there, which the fingerprint over them stands for.
OUTSIDE = {"data.path", "data.image_column", "data.max_broken"}


def sign(config: RunConfig, fingerprint: str = "f00d", weights: dict[str, str] | None = None) -> str:
    return signature(config, fingerprint, weights or {})


def set_unchecked(config: RunConfig, key: str, value: Any) -> RunConfig:
    """Like override, past the validation: some fields have one valid value so far."""
    section, name = key.split(".")
    part = dataclasses.replace(getattr(config, section))
    object.__setattr__(part, name, value)
    return dataclasses.replace(config, **{section: part})


def pinned() -> dict[str, str]:
    return {name: identity(override(preset(base), changes)) for name, (base, changes) in PINNED.items()}


def test_signatures_never_change() -> None:
    assert pinned() == json.loads(GOLDEN.read_text())
    assert len(set(pinned().values())) == len(PINNED) == 20


def test_many_signatures_at_once_are_those_of_one() -> None:
    """Configs that share sections, as those of a sweep do, and configs whose sections only look alike."""
    bases = [override(preset(base), changes) for base, changes in PINNED.values()]
    changed = [set_unchecked(BASE, key, value) for key, value in CHANGES.items()]
    copies = [dataclasses.replace(c, optimizer=copy.copy(c.optimizer)) for c in changed]
    sign_all = Signer()
    for config in [*bases, *changed, *copies, *reversed(changed)]:
        for fingerprint, weights in (("f00d", {}), ("beef", {"b": "2", "a": "1"})):
            expected = digest(science_dict(config, fingerprint, weights))
            assert sign_all(config, fingerprint, weights) == signature(config, fingerprint, weights) == expected


def test_form() -> None:
    assert len(sign(BASE)) == 12 and set(sign(BASE)) <= set("0123456789abcdef")


def test_each_science_field_changes_it() -> None:
    science = {f"{s}.{f.name}" for s in SCIENCE_SECTIONS for f in fields(SECTIONS[s])}
    assert set(CHANGES) == science - OUTSIDE, "a new science field needs a line in CHANGES"
    found = {key: sign(set_unchecked(BASE, key, value)) for key, value in CHANGES.items()}
    assert sign(BASE) not in found.values()
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation.num_images": 64},
        {"evaluation.batch_size": 4},
        {"evaluation.every": 10},
        {"execution.device": "cpu"},
        {"execution.threads": 4},
        {"execution.micro_batch": 4},
        {"execution.channels_last": True},
        {"execution.compile": True},
        {"execution.data_workers": 2},
        {"execution.keep_checkpoint": True},
        {"execution.keep_at": (3, 5)},
        {"execution.log_every": 1},
        {"execution.checkpoint_every": 7},
        {"execution.stage_data": "$TMPDIR"},
        {"data.path": "elsewhere"},
        {"data.image_column": "photo"},
        {"data.max_broken": 0.5},
    ],
)
def test_how_a_run_is_carried_out_leaves_it(changes: dict[str, Any]) -> None:
    assert sign(override(BASE, changes)) == sign(BASE)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.channel_multipliers": (1, 2, 2)},
        {"model.encoder_blocks": (1, 1, 1, 1)},
        {"model.encoder_blocks": (1, 1, 1, 1), "model.decoder_blocks": (1, 1, 1, 1), "model.blocks": 5},
        {"quantizer.lookup_norm": "l2"},
        {"quantizer.init": "spherical"},
    ],
)
def test_defaults_given_equal_defaults_left_out(changes: dict[str, Any]) -> None:
    assert sign(override(BASE, changes)) == sign(BASE)


def test_auto_lookup_norm_is_resolved_at_group_dimension_one() -> None:
    scalar = override(BASE, {"groups": 16})
    assert sign(scalar) == sign(override(scalar, {"quantizer.lookup_norm": "none"}))


def test_data_weights_and_science_version_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sign(BASE)
    assert plain != sign(BASE, fingerprint="beef")
    assert plain != sign(BASE, weights={"vgg16": "397923af"})
    assert sign(BASE, weights={"a": "1", "b": "2"}) == sign(BASE, weights={"b": "2", "a": "1"})
    monkeypatch.setattr(gsq.config.signature, "SCIENCE_VERSION", gsq.config.signature.SCIENCE_VERSION + 1)
    assert plain != sign(BASE)


def test_a_field_added_later_is_left_out_at_its_legacy_value(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Later(QuantizerConfig):
        temperature: float = field(default=0.5, metadata={"legacy": 1.0})
        sides: tuple[int, ...] = field(default=(), metadata={"legacy": ()})

    plain = sign(BASE)
    monkeypatch.setitem(SECTIONS, "quantizer", Later)
    old = to_dict(BASE)["quantizer"]

    def with_quantizer(**more: Any) -> RunConfig:
        return dataclasses.replace(BASE, quantizer=Later(**old, **more))

    legacy = with_quantizer(temperature=1.0)
    assert "temperature" not in science_dict(legacy, "f00d", {})["quantizer"]
    assert "sides" not in science_dict(legacy, "f00d", {})["quantizer"]
    assert sign(legacy) == plain
    others = [with_quantizer(), with_quantizer(temperature=1.0, sides=(8, 8))]
    assert len({plain, *map(sign, others)}) == 3


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(pinned(), indent=1) + "\n")

"""What a user may write into a config, and what the refusals say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsq import PRESETS, RunConfig, UserError, load_config, override, preset
from gsq.config.overrides import KEYS, SHORT_NAMES, Overrides, config_key, differences, from_dict, read_yaml, to_dict


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(values, where="my.yaml")
    return str(caught.value)


def test_nested_values_are_merged_into_the_base() -> None:
    base = preset("cpu-tiny")
    config = load_config({"model": {"latent_dim": 8}, "optimizer": {"betas": [0.5, 0.9], "eps": 1}}, base)
    assert config.model.latent_dim == 8
    assert config.optimizer.betas == (0.5, 0.9)
    assert config.optimizer.eps == 1.0 and isinstance(config.optimizer.eps, float)
    assert config == dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, latent_dim=8),
        optimizer=dataclasses.replace(base.optimizer, betas=(0.5, 0.9), eps=1.0),
    )


def test_nothing_to_merge_is_the_papers_model() -> None:
    assert load_config({}) == RunConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_round_trip_through_plain_values(name: str) -> None:
    config = preset(name)
    assert from_dict(to_dict(config)) == config
    assert load_config(to_dict(config)) == config


def test_lists_survive_the_round_trip() -> None:
    config = override(
        preset("cpu-tiny"),
        {"model.channel_multipliers": [1, 2, 4], "model.encoder_blocks": [1, 1, 2, 1], "optimizer.betas": [0.8, 0.9]},
    )
    assert config.model.channel_multipliers == (1, 2, 4)
    assert from_dict(to_dict(config)) == config
    assert load_config(to_dict(config)) == config


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(UserError, match="did you mean 'cpu-tiny'") as caught:
        preset("cpu-tyni")
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "groups", "base": "cpu-tiny"}, ["my.yaml", "sweep file", "preset", "optimizer"]),
        ({"modle": {}}, ["my.yaml", "unknown section 'modle'", "did you mean 'model'?", "optimizer"]),
        ({"model": {"latnet_dim": 8}}, ["my.yaml", "unknown key 'model.latnet_dim'", "did you mean 'latent_dim'?"]),
        ({"model": {3: 8}}, ["unknown key 'model.3'"]),
        ({"train": {"steps": "many"}}, ["my.yaml", "train.steps", "'many'", "whole number"]),
        ({"train": {"steps": 8.5}}, ["train.steps", "8.5"]),
        ({"train": {"steps": True}}, ["train.steps", "True"]),
        ({"train": {"steps": None}}, ["train.steps"]),
        ({"train": {"steps": [1, 2]}}, ["train.steps"]),
        ({"data": {"flip": "perhaps"}}, ["data.flip", "perhaps"]),
        ({"model": {"channel_multipliers": 2}}, ["model.channel_multipliers"]),
        ({"model": {"channel_multipliers": [1, "a", 2, 4]}}, ["model.channel_multipliers"]),
        ({"train": None}, ["train", "None", "not a mapping"]),
        ({"train": 8}, ["train", "8", "not a mapping"]),
        ({"model": {"latent_dim": 12}, "quantizer": {"groups": 8}}, ["8", "latent_dim 12", "1, 2, 3, 4, 6, 12"]),
        ({"data": {"image_size": 100}}, ["data.image_size", "100", "downsample 8", "96 would be"]),
        ({"quantizer": {"codebook_size": 1}}, ["quantizer.codebook_size", "1", "at least 2"]),
        (
            {"quantizer": {"groups": 16, "lookup_norm": "l2"}},
            ["quantizer.lookup_norm", "dimension 1", "use auto, none or clip"],
        ),
        ({"model": {"channel_multipliers": [1, 2, 4]}}, ["model.channel_multipliers", "3 entries", "needs 4"]),
        ({"model": {"encoder_blocks": [1, 2, 4]}}, ["model.encoder_blocks", "3 entries", "needs 5"]),
        ({"model": {"decoder_blocks": [1, 2, 0, 1, 1]}}, ["model.decoder_blocks", "positive"]),
        ({"model": {"channels": 48, "norm_groups": 32}}, ["model.norm_groups", "32", "48"]),
        ({"model": {"downsample": 12}}, ["model.downsample", "12", "2, 4, 8, 16, 32"]),
        ({"model": {"upsample": "depth2space"}}, ["model.upsample", "'depth2space'", "did you mean 'depth_to_space'?"]),
        ({"discriminator": {"channels": 40}}, ["discriminator.norm_groups", "40"]),
        ({"optimizer": {"learning_rate": 0}}, ["optimizer.learning_rate"]),
        ({"optimizer": {"ema_decay": 1.0}}, ["optimizer.ema_decay"]),
        ({"optimizer": {"betas": [0.9, 1.0]}}, ["optimizer.betas"]),
        ({"optimizer": {"weight_decay": float("nan")}}, ["optimizer.weight_decay"]),
        ({"optimizer": {"weight_decay": float("inf")}}, ["optimizer.weight_decay"]),
        ({"data": {"kind": "image_folder"}}, ["data.path", "image_folder"]),
        ({"data": {"min_crop": 5.0}}, ["data.min_crop", "data.max_crop"]),
        ({"data": {"max_crop": float("inf")}}, ["data.max_crop"]),
        ({"data": {"validation_share": 1.0}}, ["data.validation_share"]),
        ({"evaluation": {"num_images": 1}}, ["evaluation.num_images"]),
        ({"execution": {"device": "gpu"}}, ["execution.device", "cpu"]),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(values: dict[str, Any], said: list[str]) -> None:
    message = refused(values)
    assert [part for part in said if part not in message] == [], message


def test_images_too_small_for_the_discriminator_are_refused() -> None:
    # PatchGAN of 3 layers has no output below 24 pixels; found here rather than by a traceback at step 0.
    assert "discriminator.layers" in refused({"data": {"image_size": 16}})


def test_auto_lookup_norm_follows_the_group_dimension() -> None:
    assert load_config({}).lookup_norm == "l2"
    scalar = load_config({"quantizer": {"groups": 16}})
    assert scalar.group_dim == 1 and scalar.lookup_norm == "none"
    assert load_config({"quantizer": {"groups": 8, "lookup_norm": "none"}}).lookup_norm == "none"


@pytest.mark.parametrize(("f", "multipliers"), [(2, (1, 2)), (8, (1, 2, 2, 4)), (16, (1, 1, 2, 2, 4))])
def test_default_multipliers_of_the_paper(f: int, multipliers: tuple[int, ...]) -> None:
    model = load_config({"model": {"downsample": f}}).model
    assert model.multipliers == multipliers
    assert model.widths == tuple(128 * m for m in multipliers)
    assert model.encoder_depths == (2,) * (len(multipliers) + 1)


def test_override_takes_short_and_dotted_names() -> None:
    base = preset("cpu-tiny")
    config = override(base, {"width": 32, "model.latent_dim": 8, "learning_rate": 1, "seed": 3, "quantizer": "gsq"})
    assert (config.model.channels, config.model.latent_dim, config.train.seed) == (32, 8, 3)
    assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)
    rate = base.optimizer.learning_rate
    assert override(config, {"width": 16, "latent_dim": 16, "learning_rate": rate, "seed": 0}) == base


def test_every_short_name_has_a_key() -> None:
    assert set(SHORT_NAMES.values()) <= set(KEYS)
    assert all(config_key(name, "x") == key for name, key in SHORT_NAMES.items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"latnt_dim": 8}, ["axes", "'latnt_dim'", "did you mean 'latent_dim'?"]),
        ({"encoder.latent_dim": 8}, ["'encoder.latent_dim'", "did you mean 'model.latent_dim'?"]),
        ({"latent_dim": 8.0}, ["latent_dim", "8.0", "int"]),
        ({"latent_dim": True}, ["latent_dim", "True", "int"]),
        ({"learning_rate": "1e-3"}, ["learning_rate", "'1e-3'", "float"]),
        ({"groups": 3}, ["quantizer.groups", "1, 2, 4, 8, 16"]),
    ],
)
def test_override_refuses_as_load_config_does(values: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        override(preset("cpu-tiny"), values, where="axes")
    assert [part for part in said if part not in str(caught.value)] == [], str(caught.value)


def test_overrides_of_many_cells_are_those_of_each() -> None:
    base, seen = preset("cpu-tiny"), []
    many = Overrides(base)
    for values in (
        {"groups": 2, "seed": 1},
        {"quantizer.groups": 2, "seed": 2},
        {"groups": 2, "learning_rate": 1},
        {"optimizer.weight_decay": 0.0},
        {"optimizer.weight_decay": -0.0},
        {"optimizer.betas": [0, 0.5]},
        {"optimizer.betas": (0.0, 0.5)},
    ):
        seen.append(many(values))
        assert repr(seen[-1]) == repr(override(base, values))
    assert seen[0].quantizer is seen[1].quantizer is seen[2].quantizer and seen[0].model is base.model
    with pytest.raises(UserError, match=r"1, 2, 4, 8, 16"):
        many({"groups": 3})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "train.seed": st.integers(0, 9),
            "optimizer.weight_decay": st.sampled_from([0.0, -0.0, 0, 1, 0.1, 1e-300]),
            "optimizer.betas": st.sampled_from([(0.0, 0.5), (0, 0.5), (0.9, 0.99)]),
            "model.encoder_blocks": st.sampled_from([(), (1, 1, 1, 2)]),
            "discriminator.augment": st.sampled_from([(), ("color",)]),
            "loss.adaptive_weight": st.booleans(),
            "data.path": st.sampled_from(["", "/a b/\u00e9"]),
        },
    )
)
@settings(max_examples=60, deadline=None)
def test_differences_restore_a_config_exactly(changes: dict[str, object]) -> None:
    base = preset("cpu-tiny")
    sections: dict[str, dict[str, object]] = {}
    for key, value in changes.items():
        sections.setdefault(key.split(".")[0], {})[key.split(".")[1]] = value
    config = dataclasses.replace(
        base, **{name: dataclasses.replace(getattr(base, name), **part) for name, part in sections.items()}
    )
    found = json.loads(json.dumps(differences(config, base)))
    assert repr(Overrides(base).restore(found)) == repr(config)
    assert set(found) <= set(changes)
    assert differences(dataclasses.replace(base), base) == {}


def test_override_and_load_config_agree() -> None:
    base = preset("cpu-small")
    nested = {"model": {"latent_dim": 8}, "quantizer": {"groups": 4}, "loss": {"mse_weight": 2}}
    dotted = {"latent_dim": 8, "groups": 4, "loss.mse_weight": 2}
    assert load_config(nested, base) == override(base, dotted)


def test_configs_are_immutable_and_hashable() -> None:
    config = preset("cpu-tiny")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 3  # type: ignore[misc]
    assert len({config, preset("cpu-tiny"), preset("cpu-small")}) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model:\n  latent_dim: [1, 2\nseed: 3\n", ["c.yaml, line 3, column 5", "syntax error"]),
        ("model:\n  a: 1\n b: 2\n", ["c.yaml, line 3, column 2", "syntax error"]),
        ("- 1\n- 2\n", ["c.yaml", "mapping", "list"]),
        ("a: ${nothing.there}\n", ["c.yaml", "nothing.there"]),
        ("a: 1\na: 2\n", ["c.yaml", "duplicate"]),
    ],
)
def test_yaml_errors_name_the_place(tmp_path: Path, text: str, said: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert [part for part in said if part not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("${IMAGENET}/val", "${IMAGENET}/val"),
        ("$IMAGENET/val", "$IMAGENET/val"),
        ("export TMPDIR=${SCRATCH:-/tmp}/${USER%x}", "export TMPDIR=${SCRATCH:-/tmp}/${USER%x}"),
        ("${A:-${B}} ${#C} $(ls)", "${A:-${B}} ${#C} $(ls)"),
        (r"\${ESCAPED}", "${ESCAPED}"),
        # Keys of the file itself, and OmegaConf's own resolvers.
        ("${size}${IMAGENET}", "8${IMAGENET}"),
        ("${deep.key}", 3),
        ("${oc.env:GSQ_TEST_FOLDER}", "/there"),
    ],
)
def test_braces_mean_the_shells_variable_unless_they_name_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, read: object
) -> None:
    monkeypatch.setenv("GSQ_TEST_FOLDER", "/there")
    path = tmp_path / "c.yaml"
    path.write_text(f"size: 8\ndeep: {{key: 3, value: '{written}'}}\nlist: ['{written}']\n")
    found = read_yaml(path)
    assert found["deep"]["value"] == read and found["list"] == [read]
    if isinstance(read, str):
        # What was read is not resolved a second time.
        assert load_config({"data": {"kind": "image_folder", "path": read}}).data.path == read


def test_yaml_that_is_no_file_of_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"binary\.yaml"):
        read_yaml(tmp_path / "binary.yaml")


def test_read_yaml_gives_plain_values(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {latent_dim: 8}\nlist: [1, 2]\n")
    assert read_yaml(tmp_path / "c.yaml") == {"model": {"latent_dim": 8}, "list": [1, 2]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantizer": "lfq", "groups": 16}, ["quantizer.codebook_size: 256", "lfq", "sign", "2"]),
        ({"quantizer": "bsq", "codebook_size": 2}, ["quantizer.groups: 1", "bsq", "model.latent_dim 16"]),
        ({"quantizer": "fsq"}, ["quantizer.groups: 1", "fsq quantizes each channel"]),
        (
            {"quantizer": "fsq", "groups": 16, "codebook_size": 8, "quantizer.levels": (8, 5)},
            ["quantizer.levels: [8, 5] has 2 entries", "latent_dim 16"],
        ),
        (
            {"quantizer": "fsq", "groups": 16, "codebook_size": 8, "quantizer.levels": (5,) * 16},
            ["quantizer.codebook_size: 8", "5", "must be equal"],
        ),
        ({"quantizer": "vq", "groups": 2}, ["quantizer.groups: 2", "vq has one group", "gsq"]),
        ({"quantizer": "rvq", "quantizer.lookup_norm": "l2"}, ["quantizer.lookup_norm: 'l2'", "does not normalise"]),
        ({"quantizer.depth": 2}, ["quantizer.depth: 2", "only for rvq"]),
        ({"quantizer": "rvq", "quantizer.entropy_weight": 0.1}, ["quantizer.entropy_weight: 0.1", "gsq, vq, lfq, bsq"]),
        ({"optimizer.schedule": "cosine"}, ["optimizer.decay_steps: 0", "'cosine'", "above 0"]),
        ({"optimizer.decay_steps": 5}, ["optimizer.decay_steps: 5", "'constant'"]),
        ({"optimizer.final_learning_rate": 0.1}, ["optimizer.final_learning_rate: 0.1", "optimizer.learning_rate"]),
        ({"optimizer.discriminator_betas": (0.9,)}, ["optimizer.discriminator_betas: [0.9]", "two numbers"]),
        (
            {"quantizer": "lfq", "groups": 16, "codebook_size": 2, "quantizer.codebook_update": "ema"},
            ["quantizer.codebook_update: 'ema'", "only for gsq, vq, rvq"],
        ),
        ({"groups": 16, "quantizer.lookup_norm": "l1"}, ["'l1' at group dimension 1", "clip"]),
        ({"quantizer.levels": (1,)}, ["quantizer.levels: 1 carries no information"]),
        ({"execution.micro_batch": 3}, ["execution.micro_batch: 3", "batch_size 8", "2 would"]),
        ({"discriminator.augment": ("colour",)}, ["discriminator.augment", "'colour'", "color, translation, cutout"]),
        ({"discriminator.channel_multipliers": ()}, ["discriminator.channel_multipliers"]),
    ],
)
def test_impossible_combinations_are_refused_with_the_reason(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        override(preset("cpu-tiny"), changes)
    assert all(word in str(raised.value) for word in words), str(raised.value)

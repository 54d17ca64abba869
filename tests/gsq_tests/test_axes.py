"""The definitions of axes: formulas for every quantizer, and that they hang together."""

from __future__ import annotations

import math

import pytest

from gsq.config import axes
from gsq.config.axes import AXES, BY_NAME, DERIVED, bits, derive, levels_text, read_levels, roots
from gsq.config.overrides import KEYS, SHORT_NAMES, load_config

BASE = {"latent_dim": 8, "downsample": 4, "image_size": 32, "depth": 1, "levels": None}
KINDS = [
    ({"groups": 4, "codebook_size": 1000}, 4 * math.log2(1000), 4),
    ({"groups": 1, "codebook_size": 1024}, 10, 1),
    ({"groups": 1, "codebook_size": 32, "depth": 3}, 15, 3),
    ({"groups": 8, "codebook_size": 4, "levels": (4,) * 8}, 16, 8),
    ({"groups": 8, "codebook_size": 8, "levels": (8, 8, 4, 4, 4, 4, 4, 4)}, 18, 8),
    ({"groups": 8, "codebook_size": 2}, 8, 8),
]


@pytest.mark.parametrize(("cell", "per_token", "indices"), KINDS)
def test_the_formulas_are_right_for_every_quantizer(cell: dict, per_token: float, indices: int) -> None:
    value_of = {**BASE, **cell}.__getitem__
    assert derive("bits_per_token", value_of) == per_token
    assert derive("bits_per_pixel", value_of) == per_token / 16
    assert derive("bits_per_dimension", value_of) == per_token / 8
    assert derive("tokens_per_image", value_of) == indices * 64
    assert derive("group_dim", value_of) == 8 / cell["groups"]
    assert derive("compression_ratio", value_of) == 3 * 16 / 8
    assert derive("latent_dim", value_of) == 8


def test_bits_are_the_same_from_the_sizes_of_the_indices_and_from_their_number() -> None:
    for count in range(1, 65):
        for size in (3, 5, 1000, 999_983):
            value_of = {"groups": count, "codebook_size": size, "depth": 1, "levels": None}.__getitem__
            assert derive("bits_per_token", value_of) == bits([size] * count)


def test_every_key_is_a_config_key_and_every_input_an_axis_before_it() -> None:
    names = [axis.name for axis in AXES]
    assert len(set(names)) == len(names) == len(BY_NAME)
    assert {axis.key for axis in AXES if axis.key} == set(SHORT_NAMES.values()) <= set(KEYS)
    order = list(DERIVED)
    for place, name in enumerate(order):
        for needed in DERIVED[name].inputs:
            assert needed in BY_NAME and (needed not in DERIVED or order.index(needed) < place)
        assert set(DERIVED[name].modifiers) <= set(axes.DEFAULTS)
    assert all(axis.role == "axis" or axis.formula for axis in AXES)


def test_the_axes_of_a_tokenizer_are_written_in_the_papers_letters() -> None:
    assert [BY_NAME[name].symbol for name in axes.TOKENIZER] == ["f", "D", "G", "V"]
    assert sorted(axes.PANELS) == sorted(axes.TOKENIZER)
    assert len(set(axes.SYMBOLS.values())) == len(axes.SYMBOLS)


def test_what_a_derived_axis_follows_from_is_named_by_what_can_be_set() -> None:
    assert roots("bits_per_dimension") == ("groups", "codebook_size", "latent_dim")
    assert roots("bits_per_pixel") == ("groups", "codebook_size", "downsample")


@pytest.mark.parametrize("levels", [(8, 8, 5), (8,)])
def test_levels_are_read_as_they_are_written(levels: tuple[int, ...]) -> None:
    assert read_levels(levels_text(levels)) == levels


@pytest.mark.parametrize("text", ["", "8x", "8x8.0", "-8", "0x4", "many", None, 2.5])
def test_what_is_no_levels_is_none(text: object) -> None:
    assert read_levels(text) is None


def test_a_config_has_the_bits_of_the_axes() -> None:
    config = load_config({"quantizer": {"kind": "rvq", "depth": 3, "codebook_size": 10}})
    assert config.bits_per_token == bits(config.index_sizes) == 3 * math.log2(10)

"""Evaluation protocols: what changes their hash, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cheap_evaluation import MEANS
from tiny_run import tiny

from gsq import UserError
from gsq.config.run import EvaluationConfig
from gsq.data.sources import manifest
from gsq.evaluation.evaluate import protocol
from gsq.evaluation.protocol import FIRST_ARITHMETIC
from gsq.metrics.parts import FIRST_PARTS, PARTS


def test_the_first_protocols_keep_their_hash() -> None:
    """Results in results/ were made under it: a field that is added has the value that they had, and stays out."""
    config = tiny(evaluation__num_images=384)
    now = protocol(config.evaluation, config.data, manifest(config.data))
    assert now.earlier == replace(now, pixel_arithmetic=FIRST_ARITHMETIC).hash == "dd46299f57e9" != now.hash


@pytest.mark.parametrize(("count", "parts"), [(2050, FIRST_PARTS), (2051, PARTS), (2059, PARTS)])
def test_the_parts_of_the_inception_score_are_named_where_they_were_others(count: int, parts: str) -> None:
    config = tiny(evaluation__num_images=count, evaluation__features="inception")
    now = protocol(config.evaluation, config.data, manifest(config.data))
    assert now.inception_score == parts
    assert now.earlier == replace(now, pixel_arithmetic=FIRST_ARITHMETIC, inception_score=FIRST_PARTS).hash


@pytest.mark.parametrize(
    ("changes", "count", "refused"),
    [
        ({}, 3, True),
        ({}, 49, True),
        ({}, 50, False),
        ({"allow_small": True}, 3, False),
        # Who asks for fewer than 50 means it.
        ({"num_images": 8}, 3, False),
        ({"num_images": 49}, 8, False),
        ({"num_images": 50}, 49, True),
    ],
)
def test_a_data_set_that_holds_out_a_handful_is_refused_unless_allowed(
    changes: dict[str, Any], count: int, refused: bool
) -> None:
    evaluation = EvaluationConfig(**changes)
    if not refused:
        evaluation.check_images(count)
        return
    with pytest.raises(UserError, match=rf"num_images: {evaluation.num_images} .* {count}[, ].*allow_small: true"):
        evaluation.check_images(count)


@pytest.mark.parametrize(
    "change",
    [
        {"features": MEANS},
        {"features": "inception", "allow_small": True},
        {"lpips": "alex"},
        {"reconstruction_dtype": "bfloat16"},
        {"num_images": 9},
    ],
)
def test_what_moves_a_metric_changes_the_protocol(change: dict[str, Any]) -> None:
    configs = tiny(), tiny(**{f"evaluation__{name}": value for name, value in change.items()})
    plain, other = (protocol(c.evaluation, c.data, manifest(c.data)).hash for c in configs)
    assert plain != other


def test_the_three_resizes_of_inception_are_protocols() -> None:
    names = ("inception", "inception_pytorch_fid", "inception_clean_fid")
    rules = [
        protocol(c.evaluation, c.data, manifest(c.data))
        for c in (tiny(evaluation__features=name, evaluation__allow_small=True) for name in names)
    ]
    assert len({r.hash for r in rules}) == 3 and len({r.features_sha256 for r in rules}) == 1
    assert {r.feature_dim for r in rules} == {2048} and rules[0].feature_resize.endswith("(torch-fidelity)")

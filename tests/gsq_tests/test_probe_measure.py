"""A probe of a tokenizer: its columns, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from cheap_evaluation import setting
from torch import Tensor

from gsq.config.probe import FEWEST, SIZES, ProbeSize
from gsq.data.manifest import Manifest, Summary
from gsq.errors import UserError
from gsq.evaluation.evaluate import NonFiniteReconstruction, evaluate
from gsq.metrics.frechet import FeatureStatistics, frechet_distance
from gsq.probe.measure import probe
from gsq.probe.protocol import probe_protocol, probe_protocol_of
from gsq.quantizers import NonFiniteLatent

pytestmark = pytest.mark.filterwarnings("ignore:rfid over")


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    size = ProbeSize(16, 1, 1, 8, 1, 1, positions=64, steps=8, learning_rate=0.01)
    monkeypatch.setitem(SIZES, "tiny", size)


def asked(**changes: Any) -> tuple[Any, Any, Any]:
    model, source, evaluation = setting(evaluation__probe="tiny", evaluation__probe_images=FEWEST, **changes)
    return model.eval(), source, evaluation


def probed(model: Any, source: Any, evaluation: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    row = evaluate(model, source, evaluation)
    return row, probe(model, source, evaluation, row, **options)


@pytest.mark.parametrize("kind", [{}, {"quantizer.kind": "rvq", "quantizer.groups": 1, "quantizer.depth": 2}])
def test_the_columns_follow_from_each_other_and_are_the_same_again(tmp_path: Path, kind: dict[str, Any]) -> None:
    model, source, evaluation = asked(**{name.replace(".", "__"): value for name, value in kind.items()})
    row, found = probed(model, source, evaluation, kept=tmp_path)
    assert found["prior_bits_per_pixel"] == pytest.approx(found["prior_bits_per_token"] / 16)
    assert found["prior_gain_bits"] == pytest.approx(row["effective_bits"] - found["prior_bits_per_token"])
    assert found["gfid_minus_rfid"] == pytest.approx(found["gfid"] - row["rfid"])
    assert found["gfid_samples"] == row["num_images"] == 8
    assert len(found["probe_curve"]) == 8 and found["probe_parameters"] > 0
    assert found["probe_protocol"] == probe_protocol(evaluation, source.config, source.manifest).hash  # type: ignore[union-attr]
    # The tokens are kept for further probes; the checkpoint is not.
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["tokens"]
    model.encode = None  # not asked again
    again = probe(model, source, evaluation, row, kept=tmp_path)
    assert {k: v for k, v in again.items() if k != "probe_seconds"} == {
        k: v for k, v in found.items() if k != "probe_seconds"
    }


def test_a_collapsed_codebook_takes_no_bits_and_still_has_a_gfid() -> None:
    model, source, evaluation = asked()
    model.encode = lambda images: torch.full((len(images), 2, 8, 8), 5)
    _row, found = probed(model, source, evaluation)
    assert found["prior_bits_per_token"] == found["prior_bits_per_pixel"] == 0
    assert found["gfid"] > 0 and found["probe_converged"] and not found["probe_overfits"]


def test_indices_that_ignore_the_image_generate_what_noise_gives() -> None:
    model, source, evaluation = asked(evaluation__num_images=64)
    random = torch.Generator().manual_seed(0)

    def noise(images: Tensor) -> Tensor:
        return torch.randint(32, (len(images), 2, 8, 8), generator=random)

    model.encode = noise
    _, found = probed(model, source, evaluation)
    assert found["prior_bits_per_token"] > 0.97 * model.quantizer.bits_per_token
    import counting_features

    features = counting_features.Means(1.0)
    statistics = {name: FeatureStatistics(6) for name in ("noise", "truth")}
    with torch.no_grad():
        images = source.validation_batch(0, 64)
        statistics["truth"].update(features(images))
        statistics["noise"].update(features(model.decode(noise(images)).clamp(-1, 1)))
    assert found["gfid"] == pytest.approx(frechet_distance(statistics["truth"], statistics["noise"]), rel=0.15)


def test_too_few_images_are_refused_with_the_number_that_is_needed() -> None:
    _, source, evaluation = asked()
    folder = dataclasses.replace(source.config, kind="image_folder", path="x")
    few = dataclasses.replace(evaluation, probe_images=0)
    with pytest.raises(UserError, match=rf"evaluation.probe: 60 training images.* at least {FEWEST}"):
        probe_protocol_of(few, folder, Summary("x", 60, 60))
    assert probe_protocol_of(few, folder, Summary("x", FEWEST, 60)) is not None


def test_held_out_images_among_the_training_images_are_refused() -> None:
    _, source, evaluation = asked()
    files = source.manifest
    both = Manifest(files.name, files.fingerprint, files.train, (*files.validation, files.train[0]))
    with pytest.raises(UserError, match=rf"1 of the 4 held-out images.*{files.train[0].name}"):
        probe_protocol(evaluation, source.config, both)


def test_a_tokenizer_with_an_unequal_number_of_tokens_is_refused() -> None:
    model, source, evaluation = asked()
    row, calls = evaluate(model, source, evaluation), []

    def encode(images: Tensor) -> Tensor:
        calls.append(1)
        return torch.zeros(len(images), 2, 8, 8 + (len(calls) > 1), dtype=torch.int64)

    model.encode = encode
    with pytest.raises(UserError, match=r"128 indices .* 144 .* equally many"):
        probe(model, source, evaluation, row)


def test_a_latent_with_nan_is_named() -> None:
    model, source, evaluation = asked()
    row = evaluate(model, source, evaluation)

    def encode(images: Tensor) -> Tensor:
        raise NonFiniteLatent("latent holds NaN")

    model.encode = encode
    with pytest.raises(NonFiniteReconstruction, match=r"train images 0 to 31 .*NaN"):
        probe(model, source, evaluation, row)


def test_the_protocol_follows_what_moves_a_number() -> None:
    _, source, evaluation = asked()
    changes: dict[str, Any] = {
        "probe": "small",
        "probe_steps": 9,
        "probe_seed": 1,
        "probe_images": 200,
        "num_images": 9,
    }
    hashes = {
        probe_protocol(dataclasses.replace(evaluation, **one), source.config, source.manifest).hash  # type: ignore[union-attr]
        for one in ({}, *({name: value} for name, value in changes.items()))
    }
    assert len(hashes) == 6
    # Not by the features, which gfid shares with the evaluation's own protocol.
    same = dataclasses.replace(evaluation, features="efficientnet_lite0")
    assert probe_protocol(same, source.config, source.manifest).hash in hashes  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"evaluation.probe: 'smal' .*did you mean 'small'"):
        dataclasses.replace(evaluation, probe="smal")
    with pytest.raises(UserError, match=r"evaluation.probe_steps: 5 has no meaning"):
        dataclasses.replace(evaluation, probe="none", probe_images=0, probe_steps=5)

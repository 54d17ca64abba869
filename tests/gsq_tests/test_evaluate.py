"""An evaluation: its numbers, what it refuses, and how its work is shared."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cheap_evaluation import MEANS, setting
from test_distributed import finish, start
from tiny_run import evaluations, files_below, status, tiny

import gsq.evaluation.evaluate
from gsq import UserError, evaluate, train
from gsq.config.overrides import to_dict
from gsq.data.batches import ImageSource
from gsq.evaluation.evaluate import NonFiniteReconstruction, evaluate_all
from gsq.evaluation.tally import SmallEvaluationWarning, read_histogram
from gsq.metrics.reconstruction import psnr_ceiling_db, psnr_db, to_uint8
from gsq.models.autoencoder import Autoencoder


class Same(Autoencoder):
    """Returns the first image as it came, and the others in black."""

    def forward(self, images: torch.Tensor) -> Any:
        output = super().forward(images)
        changed = torch.full_like(images, -1)
        changed[:1] = images[:1]
        return output._replace(images=changed)


def test_an_image_that_is_reconstructed_exactly_leaves_the_means_numbers() -> None:
    config = tiny(evaluation__features=MEANS, evaluation__batch_size=2)
    source = ImageSource(config.data)
    result = evaluate(Same(config), source, config.evaluation)
    # Every second of the eight images is equal, and counts as one grey level off in one of its values.
    truth = to_uint8(source.validation_batch(0, 8))
    others = [float(psnr_db(torch.zeros_like(image), image)) for image in truth[1::2, None]]
    assert result["psnr_db"] == pytest.approx((sum(others) + 4 * psnr_ceiling_db(3 * 32 * 32)) / 8, rel=1e-12)
    assert result["ssim"] < 1 and result["mse"] > 0


# Resolutions.


def test_several_resolutions_in_one_evaluation(tmp_path: Path) -> None:
    model, source, evaluation = setting(evaluation__resolutions=[32, 64])
    small, large = evaluate_all(model, source, evaluation, histogram=tmp_path / "h.npz", step=5)
    assert (small["resolution"], large["resolution"]) == (32, 64) and small["protocol"] != large["protocol"]
    # f = 4, two groups.
    assert (small["tokens"], large["tokens"]) == (8 * 64 * 2, 8 * 256 * 2)
    assert small == evaluate(model, source, setting()[2])
    histograms = read_histogram(tmp_path / "h.npz")
    for result in (small, large):
        use = histograms[result["protocol"]].result()
        assert (use.tokens, use.perplexity, use.dead_rows) == tuple(
            result[name] for name in ("tokens", "perplexity", "dead_rows")
        )
        assert list(use.usage_per_group) == result["usage_per_group"]
    assert files_below(tmp_path) == ["h.npz"]


def test_a_run_keeps_a_row_and_a_histogram_for_each(tmp_path: Path) -> None:
    config = tiny(
        steps=2,
        evaluation__features=MEANS,
        evaluation__resolutions=[32, 64],
        loss__perceptual="none",
        discriminator__kind="none",
    )
    run = train(config, tmp_path)
    found = evaluations(run)
    assert sorted(r["resolution"] for r in found) == [32, 64] and {r["step"] for r in found} == {2}
    assert set(read_histogram(run.path / "attempts/1/index_histogram.npz")) == {r["protocol"] for r in found}
    assert len(files_below(run.path)) <= 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolutions": [32, 30]}, r"evaluation.resolutions: 30 is not divisible by model.downsample 4; 32 would"),
        ({"resolutions": [32, 32]}, "names a size twice"),
        ({"features": "inceptoin"}, r"evaluation.features: 'inceptoin' .*did you mean 'inception'"),
        ({"features": "a b:c"}, "evaluation.features: 'a b:c'"),
        ({"features": "inception"}, r"num_images: 8 images are fewer than the 2048 features .*2049.*--allow-small"),
        ({"lpips": "squeeze"}, "evaluation.lpips: 'squeeze'"),
    ],
)
def test_refused_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**{f"evaluation__{name}": value for name, value in change.items()})


def test_too_few_images_for_inception_are_refused_before_training(tmp_path: Path) -> None:
    """The config asks for enough; the folder has fewer."""
    images = tmp_path / "images"
    for part, count in (("train", 2), ("val", 3)):
        (images / part).mkdir(parents=True)
        for i in range(count):
            gsq.evaluation.evaluate.Image.new("RGB", (40, 40), (i, 0, 0)).save(images / part / f"{i}.png")
    data = {"data__kind": "image_folder", "data__path": str(images)}
    config = tiny(**data, evaluation__features="inception", evaluation__num_images=5000)
    with pytest.raises(UserError, match="3 images are fewer than the 2048 features"):
        train(config, tmp_path / "runs", on_step=lambda step: pytest.fail("trained"))


def train_with(evaluation: dict[str, Any], runs: Path) -> None:
    config = tiny(**{f"evaluation__{name}": value for name, value in evaluation.items()})
    train(config, runs, on_step=lambda step: pytest.fail("trained"))


@pytest.mark.parametrize("evaluation", [{"lpips": "alex"}, {"features": "no_such_module:build"}])
def test_what_an_evaluation_lacks_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: dict[str, Any]
) -> None:
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(UserError, match=r"'alexnet'.*missing|'no_such_module:build' .*imported"):
        train_with(evaluation, tmp_path / "runs")


def test_few_images_are_warned_of_and_marked() -> None:
    model, source, evaluation = setting(evaluation__num_images=6)
    with pytest.warns(SmallEvaluationWarning, match=r"6 images in 6 features.*biased upwards"):
        assert evaluate(model, source, evaluation)["rank_deficient"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(model, source, setting(evaluation__num_images=7)[2])["rank_deficient"] is False


# Failures.


class BrokenAt(torch.nn.Module):
    """Adds NaN to one image of the stream, before or after the tokenizer."""

    def __init__(self, model: Autoencoder, number: int, where: str) -> None:
        super().__init__()
        self.model, self.number, self.where, self.seen = model, number, where, 0
        self.quantizer = model.quantizer

    def forward(self, images: torch.Tensor) -> Any:
        images = images.clone()
        at = self.number - self.seen
        self.seen += len(images)
        if self.where == "latent" and len(images) == 1:
            # Asked again one by one, after the batch: 0, 1, ... of the second batch of three.
            at = 0 if self.seen - 6 == self.number - 2 else -1
        if self.where == "latent" and 0 <= at < len(images):
            images[at, 0, 0, 0] = float("nan")
        output = self.model(images)
        if self.where == "image" and 0 <= at < len(images):
            output.images[at, 0, 0, 0] = float("inf")
        return output


@pytest.mark.parametrize("where", ["latent", "image"])
def test_a_reconstruction_that_is_not_finite_names_step_and_image(tmp_path: Path, where: str) -> None:
    model, source, evaluation = setting()
    # Image 4 of 8, the second of the second batch of three; photos take turns.
    broken: Any = BrokenAt(model, 4, where)
    name = source.manifest.validation[4 % 3].name
    with pytest.raises(NonFiniteReconstruction, match=rf"step 70 .*image 4 \({name}\) .*finite"):
        evaluate(broken, source, evaluation, step=70, runs=tmp_path)
    assert files_below(tmp_path) == []


def test_a_run_whose_reconstructions_are_not_finite_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Autoencoder.forward

    def forward(self: Autoencoder, images: torch.Tensor) -> Any:
        output = original(self, images)
        if not self.training:
            output.images[0] = float("nan")
        return output

    monkeypatch.setattr(Autoencoder, "forward", forward)
    config = tiny(steps=2, evaluation__features=MEANS, loss__perceptual="none", discriminator__kind="none")
    with pytest.raises(NonFiniteReconstruction, match=r"step 2 .*image 0"):
        train(config, tmp_path)
    (path,) = tmp_path.glob("??/*")
    found = status(gsq.RunFolder(path))
    assert (found["state"], found["failure"]) == ("failed", "diverged") and "at step 2" in found["message"]


# Precision and sharing.


def test_reconstructions_are_float32_unless_the_protocol_says_otherwise() -> None:
    model, source, evaluation = setting()
    types: list[torch.dtype] = []
    model.decoder.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    plain = evaluate(model, source, evaluation)
    low = evaluate(model, source, setting(evaluation__reconstruction_dtype="bfloat16")[2])
    assert set(types[:3]) == {torch.float32} and set(types[3:]) == {torch.bfloat16}
    assert low["protocol"] != plain["protocol"] and low["psnr_db"] == pytest.approx(plain["psnr_db"], abs=0.5)


def test_metrics_are_those_of_all_images_at_once() -> None:
    """Streamed in batches of three, the last one of two: nothing is dropped, nothing counted twice."""
    model, source, evaluation = setting()
    found = evaluate(model, source, evaluation)
    images = source.validation_batch(0, 8)
    with torch.no_grad():
        # In the same batches: some processors round a convolution of eight images unlike one of three.
        outputs = [model(part) for part in images.split(3)]
    x, y = (to_uint8(v).double() / 127.5 - 1 for v in (images, torch.cat([one.images for one in outputs])))
    assert found["mse"] == pytest.approx(float((x - y).square().mean()), rel=1e-6)
    features = [np.concatenate([v.flatten(2).mean(2).numpy(), v.flatten(2).std(2).numpy()], 1) for v in (x, y)]
    gap = (features[0].mean(0) - features[1].mean(0)) ** 2
    assert found["rfid"] > gap.sum() * (1 - 1e-5)
    counts = torch.bincount(torch.cat([one.indices.flatten() for one in outputs]), minlength=32)
    assert found["usage"] == float((counts > 0).double().mean()) and found["tokens"] == int(counts.sum())


SHARED = """
import json, sys, torch
from gsq.models.autoencoder import Autoencoder
from gsq.config.run import EvaluationConfig
from gsq.data.batches import ImageSource
from gsq.training.distributed import join, leave
from gsq.evaluation.evaluate import evaluate
from gsq.config.overrides import from_dict
from pathlib import Path
torch.set_num_threads(1)
config = from_dict(json.loads(sys.argv[1]))
torch.manual_seed(0)
group = join(config)
histograms = {}
result = evaluate(Autoencoder(config), ImageSource(config.data), config.evaluation, group=group, runs=Path(sys.argv[2]),
    histograms=histograms)
if group.first:
    print(json.dumps([result, sum(int(h.sum()) for h in histograms.values())]))
else:
    assert result == {}
leave()
"""


def test_processes_share_an_evaluation(tmp_path: Path) -> None:
    """Eleven images over two processes, in batches of three: each image once."""
    changes = {"evaluation__num_images": 11, "train__batch_size": 4}
    model, source, evaluation = setting(**changes)
    alone = evaluate(model, source, evaluation)
    config = tiny(**{"evaluation__features": MEANS, "evaluation__batch_size": 3, **changes})
    arguments = json.dumps(to_dict(config)), str(tmp_path)
    # The second time the originals are there.
    for _ in range(2):
        (code, out, error), other = finish(start(SHARED, 2, *arguments))
        assert code == 0 and other[0] == 0, error + other[2]
        together, tokens = json.loads(out.splitlines()[-1])
        assert tokens == alone["tokens"] == 11 * 64 * 2
        for name, wanted in alone.items():
            if isinstance(wanted, float):
                assert together[name] == pytest.approx(wanted, rel=1e-5, abs=1e-9), name
            else:
                assert together[name] == wanted, name


BROKEN = """
import json, os, sys
from pathlib import Path
from gsq import train
from gsq.models.autoencoder import Autoencoder
from gsq.config.run import EvaluationConfig
from gsq.config.overrides import from_dict
original = Autoencoder.forward
def forward(self, images):
    output = original(self, images)
    if os.environ["RANK"] == "1" and not self.training:
        output.images[1] = float("nan")
    return output
Autoencoder.forward = forward
train(from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def test_what_fails_in_another_process_is_the_runs_failure(tmp_path: Path) -> None:
    """Nobody waits for the others, and the first process records what went wrong in the second."""
    config = tiny(steps=2, evaluation__features=MEANS, loss__perceptual="none", discriminator__kind="none")
    for code, _, error in finish(start(BROKEN, 2, json.dumps(to_dict(config)), str(tmp_path))):
        # The first four of the eight images are the first process's.
        assert code == 1 and "step 2 " in error and "image 5" in error
    (path,) = tmp_path.glob("??/*")
    found = status(gsq.RunFolder(path))
    assert (found["state"], found["failure"]) == ("failed", "diverged") and "image 5" in found["message"]

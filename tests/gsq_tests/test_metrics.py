"""Metrics against closed forms and other implementations."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd

from gsq.metrics.codebook import CodebookUse, IndexHistogram
from gsq.metrics.frechet import FeatureStatistics, frechet_distance
from gsq.metrics.inception_score import InceptionScore
from gsq.metrics.kid import kid
from gsq.metrics.reconstruction import from_uint8, psnr_ceiling_db, psnr_db, ssim, to_uint8

Array = NDArray[np.float64]


def exact(mean: Array, covariance: Array, count: int = 100) -> FeatureStatistics:
    return FeatureStatistics.of(count, mean, covariance)


def streamed(features: Array, *parts: int) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    for part in np.split(features, np.cumsum(parts)):
        statistics.update(torch.from_numpy(part))
    return statistics


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Frechet distance.


@pytest.mark.parametrize("dim", [1, 5, 64])
def test_distance_of_commuting_gaussians(dim: int) -> None:
    """Covariances with the same axes: sum of squared differences of standard deviations, and of the means."""
    axes = np.linalg.qr(random(0).normal(size=(dim, dim)))[0]
    s, t = random(1).uniform(0.1, 2, (2, dim))
    m, n = random(2).normal(size=(2, dim))
    a, b = exact(m, (axes * s**2) @ axes.T), exact(n, (axes * t**2) @ axes.T)
    wanted = ((m - n) ** 2).sum() + ((s - t) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-8)


def test_distance_in_two_dimensions_by_hand() -> None:
    """tr (S1 S2)^(1/2) of 2 x 2 matrices is sqrt(tr S1 S2 + 2 sqrt(det S1 S2))."""
    s, t = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    cross = math.sqrt(np.trace(s @ t) + 2 * math.sqrt(np.linalg.det(s @ t)))
    wanted = 9 + 16 + 3 + 4 - 2 * cross
    assert frechet_distance(exact(np.zeros(2), s), exact(np.array([3.0, 4.0]), t)) == pytest.approx(wanted, rel=1e-8)


def test_distance_equals_scipys_square_root() -> None:
    mix = random(3).normal(size=(2, 24, 24)) / 4
    x, y = random(4).normal(size=(200, 24)) @ mix[0], random(5).normal(size=(150, 24)) @ mix[1] + 0.3
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert frechet_distance(streamed(x), streamed(y)) == pytest.approx(wanted, rel=1e-6)


def test_equal_sets_have_no_distance() -> None:
    x = random(6).normal(size=(100, 20))
    assert frechet_distance(streamed(x), streamed(x)) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(streamed(x), streamed(x[::-1].copy())) == pytest.approx(0, abs=1e-10)


def test_rank_deficient_covariances() -> None:
    """Fewer images than features: 8 images that span 7 axes, and the same with those axes twice as wide."""
    x = np.zeros((8, 50))
    x[:, :8] = np.eye(8)
    a, b = streamed(x), streamed(2 * x)
    # S_b = 4 S_a, so that the distance is |mean|^2 + tr S_a.
    wanted = (x.mean(0) ** 2).sum() + np.trace(np.cov(x.T))
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    apart = np.zeros((8, 50))
    apart[:, 20:28] = np.eye(8)
    # No common axis: nothing crosses.
    wanted = 2 * (x.mean(0) ** 2).sum() + 2 * np.trace(np.cov(x.T))
    assert frechet_distance(a, streamed(apart)) == pytest.approx(wanted, rel=1e-6)


def test_a_shift_of_all_features_is_its_square() -> None:
    x = random(7).normal(size=(300, 10)) * 100
    assert frechet_distance(streamed(x), streamed(x + 0.01)) == pytest.approx(10 * 0.01**2, rel=1e-4)


@pytest.mark.parametrize("parts", [(), (1, 1, 5, 90), (50,), (3,) * 40])
def test_streaming_equals_one_pass(parts: tuple[int, ...]) -> None:
    # Far from the origin: sums of squares would lose half the digits.
    x = random(8).normal(size=(157, 12)) + 1e4
    found = streamed(x, *parts)
    assert found.count == 157
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-10, atol=1e-10)


def test_merging_equals_one_pass() -> None:
    x = random(9).normal(size=(100, 12)) + 50
    merged = FeatureStatistics(12)
    for part in np.split(x, [7, 60]):
        merged.merge(streamed(part))
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-10)
    np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-10, atol=1e-10)
    merged.merge(FeatureStatistics(12))
    assert merged.count == 100


def test_float32_features_are_accumulated_in_float64() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + 1000
    statistics = FeatureStatistics(4)
    for part in x.split(5):
        statistics.update(part)
    np.testing.assert_allclose(statistics.covariance, np.cov(x.double().numpy().T), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 600), max_size=6), st.integers(0, 3))
def test_any_split_and_merge_is_the_same(seed: int, cuts: list[int], processes: int) -> None:
    """Batches of any sizes, on any number of processes: to the rounding of float64."""
    x = random(seed).normal(size=(600, 5)) * [1, 1e3, 1e-3, 1, 1] + [0, 1e3, 0, 50, -3]
    parts = np.split(x, sorted(cuts))
    merged = FeatureStatistics(5)
    for i in range(processes + 1):
        share = FeatureStatistics(5)
        for part in parts[i :: processes + 1]:
            share.update(torch.from_numpy(part))
        merged.merge(pickle.loads(pickle.dumps(share)))
    whole = np.cov(x.T)
    assert merged.count == 600
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    scale = np.sqrt(np.outer(whole.diagonal(), whole.diagonal()))
    np.testing.assert_allclose(merged.covariance / scale, whole / scale, rtol=0, atol=1e-12)


def test_statistics_are_restored_bit_for_bit() -> None:
    before = streamed(random(10).normal(size=(300, 7)), 100, 77)
    after = FeatureStatistics.restored(before.arrays())
    assert after.count == 300 and np.array_equal(after.mean, before.mean)
    assert np.array_equal(after.covariance, before.covariance)
    with pytest.raises(ValueError, match="scatter of shape"):
        FeatureStatistics.restored({**before.arrays(), "mean": np.zeros(3)})


def test_a_features_tensor_may_be_overwritten() -> None:
    statistics, buffer = FeatureStatistics(3), torch.zeros(4, 3, dtype=torch.float64)
    for i in range(5):
        buffer.fill_(i)
        statistics.update(buffer)
    assert statistics.mean.tolist() == [2, 2, 2]


@pytest.mark.parametrize(("rows", "others"), [(30, 40), (120, 40), (30, 300), (81, 81)])
def test_rank_deficient_distance_is_exact(rows: int, others: int) -> None:
    """tr (S_a S_b)^(1/2) is the nuclear norm of X Y^T, for centred features X and Y: no root of rounding noise."""
    x, y = random(11).normal(size=(rows, 80)), random(12).normal(size=(others, 80)) + 0.5
    a, b = ((v - v.mean(0)) / np.sqrt(len(v) - 1) for v in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross
    found = streamed(x), streamed(y)
    assert [s.rank_deficient for s in found] == [rows < 81, others < 81]
    assert frechet_distance(*found) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(*reversed(found)) == pytest.approx(wanted, rel=1e-8)


def test_features_that_never_vary() -> None:
    still, moving = streamed(np.ones((10, 4))), streamed(random(13).normal(size=(10, 4)))
    assert frechet_distance(still, still) == 0
    wanted = ((1 - moving.mean) ** 2).sum() + np.trace(moving.covariance)
    assert frechet_distance(still, moving) == pytest.approx(wanted, rel=1e-12)


def test_features_that_are_not_finite_are_refused() -> None:
    x = random(14).normal(size=(10, 3))
    x[4, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(streamed(x), streamed(x))
    with pytest.raises(ValueError, match="3 and of 2 features"):
        frechet_distance(streamed(x), streamed(np.ones((3, 2))))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        _ = streamed(np.ones((1, 3))).covariance


# Kernel distance.


def test_kid_is_torchmetrics_without_the_pairs() -> None:
    """Both are unbiased; torchmetrics' kernel between the sets, which it takes for independent, has a diagonal."""
    x, y = (random(i).normal(size=(50, 8)).astype(np.float32) + 0.1 * i for i in (20, 21))
    theirs = float(poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double()))
    cross = (x.astype(np.float64) @ y.T / 8 + 1) ** 3
    without = (cross.sum() - np.trace(cross)) / (50 * 49)
    assert kid(x, y) == pytest.approx(theirs + 2 * cross.mean() - 2 * without, rel=1e-9)


def test_kid_is_unbiased_for_pairs() -> None:
    """Of reconstructions with the originals' distribution the mean is zero, however much a pair has in common."""
    found = []
    for seed in range(400):
        shared, own = random(seed).normal(size=(2, 20, 4))
        other = random(10_000 + seed).normal(size=(20, 4))
        found.append(kid((shared + own).astype(np.float32), (shared + other).astype(np.float32)))
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(len(found))
    x = random(22).normal(size=(30, 4)).astype(np.float32)
    assert kid(x, x) == 0


def test_kid_of_subsets_is_their_mean() -> None:
    x, y = random(23).normal(size=(2, 90, 4)).astype(np.float32)
    parts = [kid(x[i : i + 30], y[i : i + 30]) for i in (0, 30, 60)]
    assert kid(x, y, subset=30) == kid(x, y, subset=40) == pytest.approx(np.mean(parts), rel=1e-12)
    # Nearly equal parts: none of a single image, of which there would be no pairs.
    assert math.isfinite(kid(x[:31], y[:31], subset=30))
    with pytest.raises(ValueError, match="at least 2"):
        kid(x[:1], y[:1])


# Inception score.


def scored(logits: torch.Tensor, *parts: int, splits: int = 10) -> float:
    score, first = InceptionScore(len(logits), logits.shape[1], splits), 0
    for part in logits.split(list(parts) or len(logits)):
        score.update(part, first)
        first += len(part)
    return score.result()


def test_inception_score_of_known_classes() -> None:
    """Sure of one class each, 20 in turn: 20. Sure of nothing, or always of the same: 1."""
    sure = torch.eye(20).repeat(10, 1) * 1000
    assert scored(sure) == pytest.approx(20)
    assert scored(torch.zeros(40, 20)) == pytest.approx(1)
    assert scored(sure[:1].expand(40, -1)) == pytest.approx(1)


def test_inception_score_is_its_definition() -> None:
    logits = torch.randn(95, 7, generator=torch.Generator().manual_seed(0)).double() * 3
    p = logits.softmax(1)
    wanted = []
    for i in range(10):
        part = p[i * 95 // 10 : (i + 1) * 95 // 10]
        wanted.append(float((part * (part.log() - part.mean(0).log())).sum(1).mean().exp()))
    assert scored(logits) == pytest.approx(np.mean(wanted), rel=1e-12)
    assert scored(logits, 3, 50, 42) == pytest.approx(scored(logits), rel=1e-12)
    first, second = InceptionScore(95, 7), InceptionScore(95, 7)
    first.update(logits[:33], 0)
    second.update(logits[33:], 33)
    with pytest.raises(ValueError, match="33 images were given of 95"):
        first.result()
    first.merge(second)
    assert first.result() == pytest.approx(np.mean(wanted), rel=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [10, 11, 23, 95, 99, 100])
def test_inception_score_is_that_of_torchmetrics_over_the_parts_of_torch_fidelity(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.image.inception import InceptionScore as Reference

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    logits = torch.randn(count, 7, generator=torch.Generator().manual_seed(1)) * 3

    def reference(part: torch.Tensor, splits: int) -> float:
        metric = Reference(feature=Same(), splits=splits)
        metric.features.append(part.double())
        return float(metric.compute()[0])

    # Images stay in their order.
    monkeypatch.setattr(torch, "randperm", torch.arange)
    bounds = [i * count // 10 for i in range(11)]
    parts = [reference(logits[a:b], 1) for a, b in pairwise(bounds)]
    assert scored(logits) == pytest.approx(np.mean(parts), rel=1e-12)
    # Where 10 divides the number of images, torchmetrics cuts them alike.
    if count % 10 == 0:
        assert scored(logits) == pytest.approx(reference(logits, 10), rel=1e-12)


# Reconstruction.


def test_to_uint8_rounds() -> None:
    grey = torch.tensor([0.0, 0.4, 0.6, 1.4, 1.6, 253.6, 254.4, 254.6, 255.0])
    assert to_uint8(grey / 127.5 - 1).tolist() == [0, 0, 1, 1, 2, 254, 254, 255, 255]
    assert to_uint8(torch.tensor([-7.0, -1.001, 1.001, 7.0])).tolist() == [0, 0, 255, 255]


def test_to_uint8_inverts_from_uint8() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels).min() == -1 and from_uint8(levels).max() == 1
    assert from_uint8(levels).dtype == torch.float32 and to_uint8(from_uint8(levels)).dtype == torch.uint8


def test_a_perfect_reconstruction_has_no_bias() -> None:
    """Truncation would darken it by half a grey level; rounding leaves no bias, nor noise below half a level."""
    x = torch.rand(1, 3, 200, 200, generator=torch.Generator().manual_seed(1)) * 2 - 1
    bias = (to_uint8(x).double() - (x.double() + 1) * 127.5).mean()
    assert abs(bias) < 0.005
    levels = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(3)) - 0.5
    assert torch.equal(to_uint8(from_uint8(levels) + 0.98 * noise / 127.5), levels)


def images(seed: int, count: int = 3, height: int = 32, width: int = 40) -> torch.Tensor:
    coarse = torch.rand(count, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return to_uint8(torch.nn.functional.interpolate(coarse * 2 - 1, (height, width), mode="bicubic"))


def noisy(x: torch.Tensor, level: float) -> torch.Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)) * level
    return (x.float() + noise).round().clamp(0, 255).to(torch.uint8)


def test_psnr() -> None:
    x = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    y = x.clone()
    y[0] += 1
    y[1, 0, 0, 0] = 200
    found = psnr_db(y, x)
    assert found.dtype == torch.float64
    # A mean square of 1, and one value of 192 off by 100.
    assert found.tolist() == pytest.approx([20 * math.log10(255), 10 * math.log10(255**2 * 192 / 100**2)])
    assert psnr_db(x, x).isinf().all()
    # The least that two images of 192 values can differ by.
    z = x.clone()
    z[:, 0, 0, 0] += 1
    assert psnr_db(z, x).tolist() == pytest.approx([psnr_ceiling_db(192)] * 2)
    a, b = images(0), noisy(images(0), 12)
    wanted = [peak_signal_noise_ratio(p.numpy(), q.numpy()) for p, q in zip(a, b, strict=True)]
    assert psnr_db(b, a).tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("level", [2.0, 20.0, 80.0])
def test_ssim_equals_scikit_image(level: float) -> None:
    """scikit-image leaves a border of half a window out of the mean; torchmetrics mirrors the image there and keeps
    it. So scikit-image is given the image with that border mirrored outwards."""
    a = images(1)
    b = noisy(a, level)

    def mirrored(image: torch.Tensor) -> NDArray[np.uint8]:
        return np.pad(image.numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect")

    wanted = [
        structural_similarity(
            mirrored(p),
            mirrored(q),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        for p, q in zip(a, b, strict=True)
    ]
    assert ssim(b, a).tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 40), (6, 9), (96, 17)])
def test_ssim_equals_torchmetrics(height: int, width: int) -> None:
    a = torch.randint(0, 256, (3, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    b = noisy(a, 30)
    wanted = structural_similarity_index_measure(b.double() / 255, a.double() / 255, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(b, a), wanted.double(), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="at least 6 x 6"):
        ssim(a[..., :5], b[..., :5])


def test_ssim_of_one_and_of_equal_images() -> None:
    a = images(2)
    assert ssim(a, a).tolist() == [1.0] * 3
    assert ssim(a[:1], noisy(a[:1], 10)).shape == (1,)
    assert ssim(a[:1], noisy(a[:1], 10)).item() < 0.99


@pytest.mark.parametrize("level", [0, 1, 60, 127, 128, 254])
def test_ssim_of_flat_images_is_its_formula(level: int) -> None:
    """Without variance only the means count; in float32 it was up to 1.3e-4 off, and above 1."""
    a = torch.full((1, 3, 64, 64), level, dtype=torch.uint8)
    assert ssim(a, a).item() == 1
    mean, other = level / 255, (level + 1) / 255
    wanted = (2 * mean * other + 1e-4) / (mean**2 + other**2 + 1e-4)
    assert ssim(a, a + 1).item() == pytest.approx(wanted, rel=1e-11)
    # A flat image with a single speck, and nearly so.
    b = a.clone()
    b[0, :, 30, 30] += 1
    reference = structural_similarity_index_measure(b.double() / 255, a.double() / 255, data_range=1.0)
    assert ssim(b, a).item() <= 1 and ssim(b, a).item() == pytest.approx(float(reference), abs=1e-9)


# Codebook use.


def use(*groups: list[int], size: int = 8, shared: bool = True) -> CodebookUse:
    """Each group's indices as one image of one row."""
    histogram = IndexHistogram((size,) * len(groups), shared)
    histogram.update(torch.tensor(groups)[None, :, None, :])
    return histogram.result()


@pytest.mark.parametrize("shared", [True, False])
def test_uniform_use(shared: bool) -> None:
    found = use(list(range(8)) * 5, shared=shared)
    assert found.usage == 1 and found.tokens == 40
    assert found.perplexity == pytest.approx(8) and found.effective_bits == pytest.approx(3)


@pytest.mark.parametrize("shared", [True, False])
def test_a_single_row(shared: bool) -> None:
    found = use([3] * 100, shared=shared)
    assert found.usage == 1 / 8
    assert found.perplexity == pytest.approx(1) and found.effective_bits == pytest.approx(0)


def test_groups_are_counted_apart_and_pooled() -> None:
    found = use([0, 1, 0, 1], [4, 4, 4, 4])
    assert found.usage_per_group == (2 / 8, 1 / 8) and found.usage == 3 / 8
    assert found.perplexity_per_group == pytest.approx((2, 1))
    assert found.effective_bits == pytest.approx(1)
    # Pooled shares 1/4, 1/4, 1/2: entropy 1.5 bits.
    assert found.perplexity == pytest.approx(2**1.5)
    assert found.tokens == 8


def test_indices_that_share_nothing_are_not_pooled() -> None:
    """The same value of two indices is two pairs; perplexity is the geometric mean of 4 and 1."""
    found = use([0, 1, 2, 3], [0, 0, 0, 0], shared=False)
    assert found.usage_per_group == (4 / 8, 1 / 8) and found.usage == 5 / 16
    assert found.perplexity_per_group == pytest.approx((4, 1)) and found.perplexity == pytest.approx(2)
    assert found.effective_bits == pytest.approx(2)
    # Each histogram has four indices behind it.
    assert found.tokens == 4 and found.uniform_usage == pytest.approx(1 - (7 / 8) ** 4)


def test_indices_of_different_sizes() -> None:
    histogram = IndexHistogram((2, 5, 3), shared=False)
    histogram.update(torch.tensor([[0, 1, 0, 1], [4, 3, 2, 1], [2, 2, 2, 2]])[None, :, None, :])
    found = histogram.result()
    assert [counts.tolist() for counts in histogram.per_index()] == [[2, 2], [0, 1, 1, 1, 1], [0, 0, 4]]
    assert found.usage_per_group == pytest.approx((1, 4 / 5, 1 / 3)) and found.usage == pytest.approx(7 / 10)
    assert found.perplexity_per_group == pytest.approx((2, 4, 1)) and found.perplexity == pytest.approx(2)
    assert found.effective_bits == pytest.approx(3) and found.tokens == 4
    # Draws of the whole: the mean share of the ten pairs that four uniform draws of each index use.
    hits = [
        sum(len(set(random(3 * i + k).integers(0, size, 4))) for k, size in enumerate((2, 5, 3))) / 10
        for i in range(2000)
    ]
    assert found.uniform_usage == pytest.approx(np.mean(hits), abs=0.01)


def test_effective_bits_sum_over_groups() -> None:
    assert use(list(range(8)), list(range(8)), [0, 0, 0, 0, 1, 1, 1, 1]).effective_bits == pytest.approx(7)


def test_uniform_usage_is_the_expectation() -> None:
    found = use(list(range(8)) * 2)
    assert found.uniform_usage == pytest.approx(1 - (1 - 1 / 8) ** 16)
    # Many rows: without cancellation, about tokens / V.
    assert use([0], size=10**7).uniform_usage == pytest.approx(1e-7, rel=1e-9)
    draws = np.mean([len(set(random(i).integers(0, 8, 16))) / 8 for i in range(2000)])
    assert found.uniform_usage == pytest.approx(draws, abs=0.01)


@pytest.mark.parametrize("shared", [True, False])
def test_updates_add_up(shared: bool) -> None:
    indices = torch.randint(0, 50, (6, 2, 4, 4), generator=torch.Generator().manual_seed(4))
    whole, parts = IndexHistogram((50, 50), shared), IndexHistogram((50, 50), shared)
    whole.update(indices)
    for part in indices.split(4):
        parts.update(part)
    assert torch.equal(whole.counts, parts.counts) and whole.result() == parts.result()
    assert [int(counts.sum()) for counts in whole.per_index()] == [96, 96]
    assert whole.per_index()[1][7] == (indices[:, 1] == 7).sum()


@pytest.mark.parametrize("shared", [True, False])
def test_dead_rows_and_few_tokens(shared: bool) -> None:
    found = use([0, 1, 0, 1], [4, 4, 4, 4], shared=shared)
    assert found.dead_rows == (8 - 3 if shared else 6 + 7)
    assert found.few_tokens is True
    assert use(list(range(8)) * 10, shared=shared).few_tokens is False
    assert use(list(range(8)) * 10, shared=shared).dead_rows == 0


def test_histograms_of_parts_merge() -> None:
    indices = torch.randint(0, 50, (6, 2, 4, 4), generator=torch.Generator().manual_seed(5))
    whole, first, second = (IndexHistogram((50, 50), shared=True) for _ in range(3))
    whole.update(indices)
    first.update(indices[:5])
    second.update(indices[5:])
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_index_out_of_range_is_refused(wrong: int) -> None:
    """It would be counted as a value of the next index otherwise."""
    with pytest.raises(IndexError):
        IndexHistogram((4, 4), shared=False).update(torch.full((1, 2, 1, 1), wrong))


def test_large_and_many_codebooks() -> None:
    """D = 64 indices of 2^18 values: one table of counts, and nothing else of that size."""
    histogram = IndexHistogram((2**18,) * 64, shared=False)
    assert histogram.counts.numel() * histogram.counts.element_size() == 2**27
    histogram.update(torch.arange(64).view(1, 64, 1, 1).expand(1, 64, 2, 2) * 4096)
    found = histogram.result()
    assert found.tokens == 4 and found.usage == pytest.approx(2**-18) and found.effective_bits == 0


def test_nothing_counted() -> None:
    with pytest.raises(ValueError, match="no indices"):
        IndexHistogram((4,), shared=True).result()

"""The distances beside rfid (evaluation.distances), each against its reference formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from cheap_evaluation import MEANS, setting
from extras import extra
from PIL import Image
from random_features import random
from seeded_weights import seeded_images, seeded_weights
from tiny_run import tiny
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gsq.pretrained.distances
from gsq import UserError, evaluate
from gsq.config.flops import DISTANCE_MACS
from gsq.config.run import DISTANCES, DataConfig, EvaluationConfig
from gsq.data.batches import ImageSource
from gsq.data.sources import manifest
from gsq.evaluation.originals import Store
from gsq.evaluation.protocol import protocol
from gsq.metrics.cmmd import cmmd
from gsq.metrics.manifold import precision_recall
from gsq.metrics.reconstruction import from_uint8, to_uint8
from gsq.pretrained.inception import InceptionFeatures, InceptionV3
from gsq.pretrained.vit import CLIP, DINOV2, VisionTransformer, clip_features, clip_state, dinov2_features
from gsq.pretrained.weights import DISTANCE_WEIGHTS

INCEPTION = Path(__file__).parent / "fixtures" / "inception.npz"
TINY: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "side": 4}


def features(count: int, dim: int, seed: int, shift: float = 0.0) -> Any:
    return (random(seed).normal(shift, 1, (count, dim))).astype(np.float32)


# Formulas.


def by_definition(points: Any, centres: Any, k: int) -> float:
    """The share of points within the k-th neighbour's distance of any centre, one pair at a time."""
    inside = []
    radii = [sorted(np.linalg.norm(centres - c, axis=1))[k] for c in centres]  # the nearest is the centre itself
    for point in points:
        inside.append(any(np.linalg.norm(point - c) <= r for c, r in zip(centres, radii, strict=True)))
    return float(np.mean(inside))


def test_precision_and_recall_are_the_papers() -> None:
    real, made = features(70, 5, 0), features(60, 5, 1, 0.7)
    found = precision_recall(real, made)
    assert found == (by_definition(made, real, 3), by_definition(real, made, 3))
    assert 0 < found[0] < 1 and found[0] != found[1]
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    # More rows than a block of distances.
    many = features(1200, 3, 2)
    assert precision_recall(many, many[:700]) == (1, by_definition(many, many[:700], 3))
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(real[:3], made)


def test_cmmd_is_the_published_estimator() -> None:
    x, y = features(600, 16, 0), features(580, 16, 1, 0.3)

    def kernel(a: Any, b: Any) -> float:
        a, b = (v.astype(np.float64) / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * 10**2)).mean())

    assert cmmd(x, y) == pytest.approx(1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)), rel=1e-9)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9) and cmmd(x, y) > 0.01


# Networks.


def test_dinov2_is_the_librarys_network() -> None:
    transformers = extra("transformers")
    ours = VisionTransformer(**TINY, patch=14)
    state = seeded_weights({name: value.shape for name, value in ours.state_dict().items()})
    ours.load_state_dict(state)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14, layerscale_value=1.0
    )
    theirs = transformers.Dinov2Model(config).eval()
    theirs.load_state_dict(_dinov2_names(state, "encoder.layer.0.attention.q_proj.weight" in theirs.state_dict()))
    images = seeded_images(2, 56, 56, 3).float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).pooler_output, rtol=1e-4, atol=1e-5)
        # Another number of patches: positions as in the published code, whose scale is a tenth of a patch larger.
        grid = state["pos_embed"][:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
        wanted = nn.functional.interpolate(grid, scale_factor=(3.1 / 4, 3.1 / 4), mode="bicubic")
        found = ours.positions(3, 3)
    assert found.shape == (1, 10, 32)
    torch.testing.assert_close(found[:, 1:], wanted.flatten(2).transpose(1, 2))


def _dinov2_names(state: dict[str, Tensor], newer: bool) -> dict[str, Tensor]:
    """The published names to the library's, of version 5 (newer) or 4."""
    query, out = ("{}_proj", "o_proj") if newer else ("attention.{}", "output.dense")
    known = {
        "cls_token": "embeddings.cls_token", "mask_token": "embeddings.mask_token", "pos_embed":
        "embeddings.position_embeddings", "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm.": "layernorm.",
    }  # fmt: skip
    inside = {"attn.proj": f"attention.{out}", "ls1.gamma": "layer_scale1.lambda1"} | {
        "ls2.gamma": "layer_scale2.lambda1"
    }
    made = {}
    for name, value in state.items():
        start = next((s for s in known if name.startswith(s)), None)
        if start:
            made[name.replace(start, known[start], 1)] = value
            continue
        _, block, rest = name.split(".", 2)
        if rest.startswith("attn.qkv"):
            kind = rest.rpartition(".")[2]
            for part, one in zip(("query", "key", "value"), value.chunk(3), strict=True):
                name = query.format(part[0] if newer else part)
                made[f"encoder.layer.{block}.attention.{name}.{kind}"] = one
            continue
        for ours, theirs in inside.items():
            rest = rest.replace(ours, theirs)
        made[f"encoder.layer.{block}.{rest}"] = value
    return made


def test_clip_is_the_librarys_network() -> None:
    transformers = extra("transformers")
    ours = VisionTransformer(**TINY, patch=14, clip=True, outputs=24)
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (32,), "positional_embedding": (17, 32), "conv1.weight": (32, 3, 14, 14), "proj": (32, 24),
        **{f"{norm}.{kind}": (32,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
    }  # fmt: skip
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        shapes |= {f"{block}.{norm}.{kind}": (32,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        for name, shape in {
            "attn.in_proj_": (96, 32), "attn.out_proj.": (32, 32), "mlp.c_fc.": (128, 32), "mlp.c_proj.": (32, 128)
        }.items():  # fmt: skip
            shapes |= {f"{block}.{name}weight": shape, f"{block}.{name}bias": shape[:1]}
    published = seeded_weights({f"visual.{name}": shape for name, shape in shapes.items()})
    published["logit_scale"] = torch.ones(())  # of the text encoder, like others
    ours.load_state_dict(clip_state(published))
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, projection_dim=24, num_hidden_layers=2, num_attention_heads=4,
        image_size=56, patch_size=14,
    )  # fmt: skip
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    theirs.load_state_dict(_clip_names(published), strict=False)
    assert not {n for n in theirs.state_dict() if "position_ids" not in n} - set(_clip_names(published))
    images = seeded_images(2, 56, 56, 3).float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).image_embeds, rtol=1e-4, atol=1e-5)


def _clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names to the library's."""
    made: dict[str, Tensor] = {}
    plain = {
        "class_embedding": "embeddings.class_embedding", "positional_embedding":
        "embeddings.position_embedding.weight", "conv1.weight": "embeddings.patch_embedding.weight",
        **{f"ln_pre.{k}": f"pre_layrnorm.{k}" for k in ("weight", "bias")},
        **{f"ln_post.{k}": f"post_layernorm.{k}" for k in ("weight", "bias")},
    }  # fmt: skip
    for full, value in state.items():
        name = full.removeprefix("visual.")
        if name == "proj":
            made["visual_projection.weight"] = value.T
        elif name in plain:
            made[f"vision_model.{plain[name]}"] = value
        elif name.startswith("transformer"):
            _, _, block, rest = name.split(".", 3)
            layer, kind = f"vision_model.encoder.layers.{block}.", rest.rpartition(".")[2].removeprefix("in_proj_")
            if "in_proj" in rest:
                for part, one in zip("qkv", value.chunk(3), strict=True):
                    made[f"{layer}self_attn.{part}_proj.{kind}"] = one
                continue
            for ours, theirs in (
                ("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
                ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
            ):  # fmt: skip
                rest = rest.replace(ours, theirs)
            made[f"{layer}{rest}"] = value
    return made


def test_plans_count_the_transformers_multiply_adds() -> None:
    for name, sizes, pixels in (("fd_dinov2", DINOV2, 224), ("cmmd", CLIP, 336)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            VisionTransformer(**sizes)(torch.zeros(1, 3, pixels, pixels))
        assert counter.get_total_flops() == 2 * DISTANCE_MACS[name]


def test_images_reach_the_transformers_resized_and_normalised() -> None:
    """DINOv2's like Pillow's bicubic (to a grey level), CLIP's without antialiasing."""
    # Pillow clips between its two passes, which dark and light pixels would show.
    images = seeded_images(1, 300, 280, 4) // 2 + 64
    pillow = np.stack(
        [np.asarray(Image.fromarray(c.numpy()).resize((224, 224), Image.Resampling.BICUBIC)) for c in images[0]]
    )
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean((2, 3))

    spy: Any = Spy()
    for make in (dinov2_features, clip_features):
        make(spy)(images.float() / 127.5 - 1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    back = (seen[0][0] * deviation[:, None, None] + mean[:, None, None]) * 255
    np.testing.assert_allclose(back.numpy(), pillow, atol=1.5)
    assert seen[1].shape == (1, 3, 336, 336)


@pytest.fixture(scope="module")
def inception() -> InceptionV3:
    with np.load(INCEPTION) as arrays:
        return InceptionV3(seeded_weights(json.loads(str(arrays["shapes"]))))


def test_spatial_features_are_the_first_channels_of_mixed_6s_convolution(inception: InceptionV3) -> None:
    x = torch.randn(2, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    kept: list[Tensor] = []
    block: Any = inception.Mixed_6d
    hook = block.branch1x1.register_forward_hook(lambda module, given, made: kept.append(made))
    pool, logits, spatial = inception.everything(x)
    hook.remove()
    assert kept[0].shape == (2, 192, 17, 17) and spatial.shape == (2, 2023)
    torch.testing.assert_close(spatial, torch.from_numpy(kept[0].numpy().transpose(0, 2, 3, 1)[..., :7].reshape(2, -1)))
    again = inception(x)
    assert torch.equal(again[0], pool) and torch.equal(again[1], logits)


# In an evaluation.


class Small(nn.Module):
    """A network that stands for a published one: random projections of the image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(48, dim, generator=torch.Generator().manual_seed(dim)))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) @ self.matrix


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {"fd_dinov2": Small(12), "cmmd": Small(9)}
    monkeypatch.setattr(gsq.pretrained.distances, "dinov2_features", lambda: networks["fd_dinov2"])
    monkeypatch.setattr(gsq.pretrained.distances, "clip_features", lambda: networks["cmmd"])
    monkeypatch.setitem(gsq.pretrained.distances.DIMS, "fd_dinov2", 12)
    monkeypatch.setattr("gsq.evaluation.protocol.weights_sha256", lambda name: name * 3)
    return networks


def scipys(a: Any, b: Any) -> float:
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root.real))


def test_an_evaluation_measures_what_is_asked_for(small: dict[str, nn.Module], tmp_path: Path) -> None:
    names = ("cmmd", "precision_recall", "fd_dinov2")
    model, source, evaluation = setting(evaluation__num_images=40, evaluation__distances=names)
    result = evaluate(model, source, evaluation, runs=tmp_path)
    images = source.validation_batch(0, 40)
    with torch.no_grad():
        pairs = [from_uint8(to_uint8(x)) for x in (images, model.eval()(images).images)]
        dino, clip = ([np.float64(small[n](x)) for x in pairs] for n in ("fd_dinov2", "cmmd"))
    assert result["fd_dinov2"] == pytest.approx(scipys(*dino), rel=1e-4)
    assert result["cmmd"] == pytest.approx(cmmd(*(np.float32(x) for x in clip)), rel=1e-4)
    assert 0 <= result["precision"] <= 1 and 0 <= result["recall"] <= 1
    # The originals' features come back from the folder of runs as they were.
    kept = Store(tmp_path, result["protocol"]).load()
    assert kept and set(kept.distances) == {"cmmd", "fd_dinov2"}
    assert evaluate(model, source, evaluation, runs=tmp_path) == result
    plain = evaluate(model, source, setting(evaluation__num_images=40)[2])
    assert plain["protocol"] != result["protocol"] and plain["rfid"] == result["rfid"] and "cmmd" not in plain


def test_sfid_shares_the_pass_of_rfid(inception: InceptionV3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InceptionV3, "pretrained", lambda: inception)
    passes: list[int] = []
    whole = InceptionV3.everything
    monkeypatch.setattr(InceptionV3, "everything", lambda self, x: passes.append(len(x)) or whole(self, x))
    found = {}
    for name in ("inception_clean_fid", MEANS):
        passes.clear()
        model, source, evaluation = setting(
            evaluation__num_images=4, evaluation__allow_small=True, evaluation__features=name,
            evaluation__distances=["sfid"],
        )  # fmt: skip
        found[name] = evaluate(model, source, evaluation)
        assert sum(passes) == 8
    images = source.validation_batch(0, 4)
    with torch.no_grad():
        network = InceptionFeatures("inception_clean_fid", inception, spatial=True)
        pair = [np.float64(network(from_uint8(to_uint8(x)))[2]) for x in (images, model.eval()(images).images)]
    # Rank 3 of 2,023: the trace of the root is that of a small matrix.
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in pair]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    wanted = ((pair[0].mean(0) - pair[1].mean(0)) ** 2).sum() + sum((c**2).sum() for c in centred) - 2 * cross
    assert found["inception_clean_fid"]["sfid"] == pytest.approx(wanted, rel=1e-6)
    assert "inception_score" in found[MEANS] and found[MEANS]["sfid"] != found["inception_clean_fid"]["sfid"]


def test_distances_enter_the_protocol_only_where_asked_for(small: dict[str, nn.Module]) -> None:
    hashes = set()
    for names in ((), *((name,) for name in DISTANCES), DISTANCES):
        config = tiny(evaluation__distances=names)
        rules = protocol(config.evaluation, config.data, manifest(config.data))
        hashes.add(rules.hash)
        assert (rules.distances == "none") == (not names)
    assert len(hashes) == 6 and set(DISTANCES) == set(DISTANCE_WEIGHTS)
    turned = [EvaluationConfig(distances=order) for order in (DISTANCES, DISTANCES[::-1])]
    data = tiny().data
    assert len({protocol(one, data, manifest(data)).hash for one in turned}) == 1


def test_too_few_images_for_a_manifold_are_refused() -> None:
    evaluation = EvaluationConfig(distances=("precision_recall",), allow_small=True)
    with pytest.raises(UserError, match=r"precision_recall needs more than 3 images.*there are 3"):
        evaluation.check_images(3)
    evaluation.check_images(4)


@pytest.mark.parametrize(("names", "fix"), [(("fid",), "fd_dinov2"), (("sfid", "sfid"), "twice")])
def test_an_unknown_distance_is_refused(names: tuple[str, ...], fix: str) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.distances.*{fix}"):
        EvaluationConfig(distances=names)


def test_missing_weights_are_named_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path))
    model, source, evaluation = setting(evaluation__distances=["fd_dinov2"])
    with pytest.raises(UserError, match="gsq weights fetch dinov2_vitl14"):
        evaluate(model, source, evaluation)


# Folders.


@pytest.fixture
def classes(tmp_path: Path) -> DataConfig:
    for i, name in enumerate(["train/cat", "val/cat", "val/dog", "val/deep/dog"]):
        (tmp_path / name).mkdir(parents=True)
        for j in range(4):
            pixels = seeded_images(1, 40, 40, 10 * i + j)[0].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / name / f"{j}.png")
    return DataConfig(kind="image_folder", path=str(tmp_path), image_size=32)


def test_rfid_of_a_class(classes: DataConfig) -> None:
    model, _, _ = setting()
    source = ImageSource(classes)
    common = {"features": MEANS, "allow_small": True}
    whole = evaluate(model, source, EvaluationConfig(**common))  # type: ignore[arg-type]
    cat = evaluate(model, source, EvaluationConfig(folder="cat", **common))  # type: ignore[arg-type]
    assert (whole["num_images"], cat["num_images"]) == (12, 4)
    assert cat["protocol_fields"]["folder"] == "cat" and cat["protocol"] != whole["protocol"]
    assert cat == evaluate(model, source, EvaluationConfig(folder="cat/", **common))  # type: ignore[arg-type]
    deep = evaluate(model, source, EvaluationConfig(folder="val/deep", **common))  # type: ignore[arg-type]
    only = evaluate(model, ImageSource(classes, source.manifest.below("val/deep/dog")), EvaluationConfig(**common))  # type: ignore[arg-type]
    assert deep["rfid"] == only["rfid"] != cat["rfid"]


@pytest.mark.parametrize(("folder", "words"), [("bird", "'val/cat'"), ("dog", "several places"), ("train/cat", "none")])
def test_a_folder_without_images_or_in_two_places_is_refused(classes: DataConfig, folder: str, words: str) -> None:
    model, _, _ = setting()
    with pytest.raises(UserError, match=rf"evaluation\.folder: '{folder}'.*{words}"):
        evaluate(model, ImageSource(classes), EvaluationConfig(features=MEANS, allow_small=True, folder=folder))

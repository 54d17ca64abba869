"""What a part of a user's own must do, tried out: the checks that built-in parts pass, each with what went wrong.

``check_part`` is behind ``gsq check``. Shapes: B images of S x S pixels, D latent channels.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gsq.config.overrides import override
from gsq.config.parts import check_parts, is_path, load, source_sha256
from gsq.config.presets import preset
from gsq.config.run import RunConfig
from gsq.data.batches import ImageSource
from gsq.errors import UserError
from gsq.evaluation.own_metrics import own_metrics
from gsq.models.autoencoder import Autoencoder
from gsq.models.discriminators import build_discriminator
from gsq.pretrained.extractor import feature_extractor
from gsq.quantizers import Quantizer, build_quantizer, check_counted
from gsq.runs.part_training import BATCH, STEPS, TOLERANCE, Tests, require, training_checks
from gsq.training.losses import build_perceptual_loss

# What a part is called on the command line, and the config key that takes it.
ROLES = {
    "quantizer": "quantizer.kind",
    "model": "model.kind",
    "discriminator": "discriminator.kind",
    "loss": "loss.perceptual",
    "data": "data.kind",
    "features": "evaluation.features",
    "metric": "evaluation.metrics",
}
SIZE = 32
# Printed by a part in one check; a sweep of a thousand cells would fill a disk with more.
MOST_PRINTED = 2000


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    passed: bool
    message: str = ""
    """What went wrong. A check that passed has a warning or nothing here."""


def role_of(name: str) -> str:
    """What a part is, by what it looks like. Raises UserError where that does not say."""
    found = load(name, "quantizer.kind")
    if isinstance(found, type) and issubclass(found, Quantizer):
        return "quantizer"
    if hasattr(found, "encoder") and hasattr(found, "decoder"):
        return "model"
    raise UserError(
        f"{name}: cannot tell what it is for; say it with --as {', '.join(ROLES)} (a quantizer is a subclass of "
        "gsq.quantizers.Quantizer, a model has the functions encoder and decoder)"
    )


def config_with(name: str, role: str, options: dict[str, Any] | None = None) -> RunConfig:
    """A tiny run with the part in its place. Raises UserError as ``check_parts`` does."""
    key = ROLES[role]
    values: dict[str, Any] = {
        "downsample": 4, "latent_dim": 4, "groups": 2, "codebook_size": 16, "batch_size": BATCH, "steps": STEPS,
        "data.image_size": SIZE, "loss.perceptual": "none", "loss.discriminator_start": 1,
        "evaluation.num_images": 8, "evaluation.allow_small": True,
    }  # fmt: skip
    values[key] = [name] if role == "metric" else name
    if options:
        values[f"{key.split('.')[0]}.options"] = options
    if role == "quantizer":
        from gsq.config.kinds import kind_named

        if kind_named(name).per_channel:
            values |= {"groups": 4, "codebook_size": 2}
    config = override(preset("cpu-tiny"), values, f"--as {role}")
    check_parts(config)
    return config


def check_part(name: str, role: str | None = None, options: dict[str, Any] | None = None) -> list[Check]:
    """Try the part ``package.module:Name`` out, in ``role`` (one of ROLES; by default what it looks like).

    Raises UserError where there is nothing to try: the part cannot be imported, or refuses its options.
    """
    if not is_path(name):
        raise UserError(f"'{name}' is not a part; write package.module:Name")
    role = role or role_of(name)
    config = config_with(name, role, options)
    own = {
        "quantizer": _quantizer, "model": _model, "discriminator": _discriminator, "loss": _loss, "data": _data,
        "features": _features, "metric": _metric,
    }[role]  # fmt: skip
    found = [Check("its source is found, and identified", True, source_sha256(name)[:12])]
    found += [_tried(title, check) for title, check in own(config)]
    if not ROLES[role].startswith("evaluation.") and all(check.passed for check in found):
        found += [_tried(title, check) for title, check in training_checks(config)]
    return found


def _tried(title: str, check: Callable[[], str | None]) -> Check:
    """Run one check, which raises or returns a warning. It must not print much, nor change the random state."""
    before, printed = torch.get_rng_state(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            warning = check()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        plain = isinstance(error, UserError | AssertionError)
        return Check(title, False, lines[0] if plain else f"{type(error).__name__}: {lines[-1]}")
    if len(printed.getvalue()) > MOST_PRINTED:
        warning = f"it prints {len(printed.getvalue()):,} characters; a sweep's logs would fill a disk"
    if "random state" in title and not torch.equal(before, torch.get_rng_state()):
        return Check(
            title, False, "it draws from torch's global random numbers when it is evaluated; use a torch.Generator"
        )
    return Check(title, True, warning or "")


def _same(one: Tensor, other: Tensor, what: str, tolerance: float = 0.0) -> None:
    one, other = one.detach(), other.detach()
    if one.shape != other.shape:
        raise AssertionError(f"{what}: shapes {tuple(one.shape)} and {tuple(other.shape)}")
    gap = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    scale = float(other.double().abs().max()) if one.numel() else 1.0
    require(gap <= tolerance * max(scale, 1.0), f"{what}: they differ by up to {gap:.3g}")


def _images(count: int = BATCH, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


def _gradient(module: Callable[[Tensor], Tensor], images: Tensor, what: str) -> None:
    images = images.clone().requires_grad_()
    module(images).float().square().sum().backward()
    gradient = images.grad
    require(gradient is not None and bool(gradient.any()), f"no gradient reaches {what}")
    require(bool(gradient is not None and gradient.isfinite().all()), f"the gradient to {what} is not finite")


def _alone(module: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """The result for an image does not depend on the others of its batch."""
    whole = module(images)
    parts = torch.cat([module(image[None]) for image in images])
    _same(parts, whole, "images one by one and together", TOLERANCE)


def _saved(module: nn.Module, again: nn.Module, run: Callable[[nn.Module], Tensor]) -> None:
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    stream.seek(0)
    again.load_state_dict(torch.load(stream, weights_only=True))
    _same(run(again.eval()), run(module.eval()), "before saving and after loading")


def _quantizer(config: RunConfig) -> Tests:
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    generator = torch.Generator().manual_seed(2)
    latent = torch.randn(BATCH, config.model.latent_dim, 8, 8, generator=generator)

    def interface() -> None:
        output = quantizer(latent)
        require(bool(output.loss.isfinite()), f"the loss is {output.loss.item()}")

    def decoded() -> None:
        output = quantizer(latent)
        _same(quantizer.decode_indices(output.indices), output.latent, "decode_indices(indices) and forward's latent")

    def half() -> None:
        for dtype in (torch.float16, torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16):
                require(
                    bool(quantizer(latent.to(dtype)).latent.isfinite().all()), f"the latent of {dtype} is not finite"
                )

    def evaluated() -> None:
        quantizer.eval()
        first, second = quantizer(latent), quantizer(latent)
        quantizer.train()
        require(torch.equal(first.indices, second.indices), "two evaluations of one latent give different indices")

    def cost() -> str | None:
        check_counted(quantizer, config)
        real = sum(p.numel() for p in quantizer.parameters())
        stated = config.codebook_parameters
        return None if real == stated else f"it has {real:,} parameters, and KINDS says {stated:,}"

    yield "shapes, types and range of indices", interface
    yield "indices decode to the same latent", decoded
    yield "the gradient passes straight through", lambda: _gradient(lambda x: quantizer(x).latent, latent, "the latent")
    yield "half precision and autocast", half
    yield "same when evaluated again; random state", evaluated
    yield "images do not depend on each other", lambda: _alone(lambda x: quantizer.eval()(x).latent, latent)
    yield (
        "saved and loaded",
        lambda: _saved(quantizer, build_quantizer(config), lambda q: q(latent).latent),
    )
    yield "what a plan counts", cost


def _model(config: RunConfig) -> Tests:
    torch.manual_seed(0)
    model = Autoencoder(config)
    images = _images()
    latent_shape = (BATCH, config.model.latent_dim, *[SIZE // config.model.downsample] * 2)

    def shapes() -> None:
        latent = model.encoder(images)
        require(tuple(latent.shape) == latent_shape, f"encoder: {tuple(latent.shape)} instead of {latent_shape}")
        found = model.decoder(latent)
        require(found.shape == images.shape, f"decoder: {tuple(found.shape)} instead of {tuple(images.shape)}")

    def other_size() -> None:
        larger = _images(2, 2 * SIZE)
        require(model(larger).images.shape == larger.shape, "images of another size come back in another shape")

    yield "shapes", shapes
    yield "images of another size", other_size
    yield "gradient to the images", lambda: _gradient(lambda x: model.encoder(x), images, "the images")
    yield "images do not depend on each other", lambda: _alone(lambda x: model.eval()(x).images, images)
    yield "same when evaluated again; random state", lambda: _twice(lambda: model.eval()(images).images)
    yield "saved and loaded", lambda: _saved(model, Autoencoder(config), lambda m: m(images).images)


def _twice(run: Callable[[], Tensor]) -> None:
    _same(run(), run(), "one evaluation and another")


def _discriminator(config: RunConfig) -> Tests:
    def build() -> nn.Module:
        module = build_discriminator(config.discriminator, SIZE)
        require(isinstance(module, nn.Module), f"it returned a {type(module).__name__}; it must be a torch module")
        assert module is not None
        return module

    def logits() -> None:
        found = build()(_images())
        require(len(found) == BATCH and bool(found.isfinite().all()), f"logits {tuple(found.shape)}, or not finite")

    yield "logits", logits
    yield "gradient to the images", lambda: _gradient(build(), _images(), "the images")
    yield "images do not depend on each other", lambda: _alone(build().eval(), _images())
    yield "saved and loaded", lambda: _saved(build(), build(), lambda m: m(_images()))


def _loss(config: RunConfig) -> Tests:
    def build() -> nn.Module:
        module = build_perceptual_loss(config.loss.perceptual, options=config.loss.options)
        require(isinstance(module, nn.Module), f"it returned a {type(module).__name__}; it must be a torch module")
        assert module is not None
        return module

    def scalar() -> str | None:
        images, targets = _images(), _images().flip(0)
        value, equal = build()(images, targets), build()(images, images)
        require(value.shape == () and bool(value.isfinite()), f"a finite scalar is needed, got {value}")
        return None if abs(equal.item()) < abs(value.item()) else "equal images cost no less than unequal ones"

    def mean() -> None:
        images, targets = _images(), _images().flip(0)
        halves = (build()(images[:2], targets[:2]) + build()(images[2:], targets[2:])) / 2
        _same(halves[None], build()(images, targets)[None], "the mean over two halves and the whole batch", TOLERANCE)

    targets = _images().flip(0)
    yield "a finite scalar", scalar
    yield "a mean over the images", mean
    yield "gradient to the images", lambda: _gradient(lambda x: build()(x, targets), _images(), "the images")
    yield "same when evaluated again; random state", lambda: _twice(lambda: build()(_images(), targets)[None])


def _data(config: RunConfig) -> Tests:
    def images() -> str | None:
        source = ImageSource(config.data)
        made = source.manifest
        require(bool(made.train) and len(made.validation) > 1, f"{len(made.train)} and {len(made.validation)} images")
        both = {file.sha256 for file in made.train} & {file.sha256 for file in made.validation}
        for file in (*made.train[:3], *made.validation[:3]):
            image = source.load(file)
            require(image.mode == "RGB", f"{file.name} is {image.mode}; RGB is needed")
        return f"{len(both)} images are in both splits" if both else None

    def again() -> None:
        one, other = ImageSource(config.data), ImageSource(config.data)
        require(one.manifest.fingerprint == other.manifest.fingerprint, "the fingerprint changes from call to call")
        _same(one.train_batch(0, 0, range(4)), other.train_batch(0, 0, range(4)), "one batch and the same again")

    yield "images of both splits", images
    yield "same when read again; random state", again


def _features(config: RunConfig) -> Tests:
    def build(images: Tensor) -> Tensor:
        return feature_extractor(config.evaluation.features, SIZE)(images)[0]

    yield "one row of features an image", lambda: None if build(_images()).isfinite().all() else _fail("not finite")
    yield "images do not depend on each other", lambda: _alone(build, _images())
    yield "same when evaluated again; random state", lambda: _twice(lambda: build(_images()))


def _fail(message: str) -> None:
    raise AssertionError(message)


def _metric(config: RunConfig) -> Tests:
    def build(images: Tensor) -> Tensor:
        (metric,) = own_metrics(config.evaluation.metrics, torch.device("cpu"))
        return metric(images, images.flip(3))

    def finite() -> None:
        build(_images())

    yield "one finite value an image", finite
    yield "images do not depend on each other", lambda: _alone(build, _images())
    yield "same when evaluated again; random state", lambda: _twice(lambda: build(_images()))

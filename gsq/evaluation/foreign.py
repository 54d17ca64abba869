"""A tokenizer that gsq did not train, as a model to evaluate: what it must do, and what is asked of its answers.

Shapes: B images of H x W pixels, K indices of a position, N positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gsq.config.parts import PATH, is_path, load
from gsq.errors import UserError, choose
from gsq.models.autoencoder import Autoencoder, AutoencoderOutput

Range = tuple[float, float]
RANGES: tuple[Range, ...] = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))


@dataclass(frozen=True)
class Convention:
    """How a model takes and returns images."""

    range: Range = (-1.0, 1.0)
    """Values of black and white in what it takes."""
    output_range: Range | None = None
    """Values of black and white in what it returns; None: the same."""
    channels: str = "rgb"
    """rgb or bgr."""

    @property
    def returned(self) -> Range:
        return self.output_range or self.range

    def given(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] as the model takes them."""
        low, high = self.range
        scaled = images if self.range == RANGES[0] else (images + 1) / 2 * (high - low) + low
        return scaled.flip(1) if self.channels == "bgr" else scaled

    def read(self, made: Tensor) -> Tensor:
        """What the model returns, in [-1, 1]."""
        low, high = self.returned
        made = made.flip(1) if self.channels == "bgr" else made
        return made if self.returned == RANGES[0] else (made - low) / (high - low) * 2 - 1


class Foreign(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> what ``gsq.models.autoencoder.Autoencoder`` returns, made by any object.

    The object has ``encode(images) -> codes`` and ``decode(codes) -> images``, or ``reconstruct(images) -> images``. It
    may have attributes: ``range``, ``output_range`` and ``channels`` (Convention); ``image_size`` [pixels], if it takes
    no other; ``codebook_size``, or ``index_sizes`` of the K indices of a position; ``quantizer``, its kind; and
    ``weights``, a word on them such as "random". Codes that are whole numbers, (B, ...) or (B, K, ...), are indices;
    ``indices(codes)`` returns them from codes of another form.
    """

    def __init__(self, model: Any, name: str, convention: Convention) -> None:
        super().__init__()
        self.name, self.convention, self.model = name, convention, model
        parts = [model] if isinstance(model, nn.Module) else list(getattr(model, "__dict__", {}).values())
        self.modules_of_model = nn.ModuleList(one for one in parts if isinstance(one, nn.Module))
        # Says on which device the model is, even if no parameter does.
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)
        one = getattr(model, "codebook_size", None)
        # A model that only reconstructs returns no indices, whatever it declares.
        self.has_codes = callable(getattr(model, "encode", None)) and callable(getattr(model, "decode", None))
        sizes = tuple(getattr(model, "index_sizes", None) or ((one,) if one else ())) if self.has_codes else ()
        self.quantizer = SimpleNamespace(index_sizes=sizes, shared_codebook=len(sizes) == 1)
        self.codes_shape: tuple[int, ...] = ()
        """Shape of the indices of a batch, as the model returns them; empty if it returns none."""
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """Raises UserError where the object fails, or returns something else than images."""
        made, indices = self._called(self.convention.given(images))
        if not isinstance(made, Tensor):
            raise UserError(
                f"{self.name}: returned a {type(made).__name__} for images; it must be a tensor (B, 3, H, W)"
            )
        if made.shape != images.shape:
            batch, _, height, width = images.shape
            last = made.shape == (batch, height, width, 3)
            fix = "put the channels second" if last else "it must return images of the size that it is given"
            raise UserError(f"{self.name}: returned {tuple(made.shape)} for images {tuple(images.shape)}; {fix}")
        return AutoencoderOutput(self.convention.read(made.float()), indices, made.new_zeros(()))

    def _called(self, images: Tensor) -> tuple[Any, Tensor]:
        none = torch.zeros((len(images), 0, 0), dtype=torch.int64)
        try:
            if self.has_codes:
                codes = self.model.encode(images)
                found = self.model.indices(codes) if hasattr(self.model, "indices") else codes
                indices = self._indices(found) if self.quantizer.index_sizes else none
                return self.model.decode(codes), indices
            return self.model.reconstruct(images), none
        except UserError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            low, high = self.convention.range
            raise UserError(
                f"{self.name}: failed on images {tuple(images.shape)} in [{low:g}, {high:g}]: {type(error).__name__}: "
                f"{lines[0]}"
            ) from error

    def _indices(self, codes: Any) -> Tensor:
        """(B, K, N), int64."""
        sizes = self.quantizer.index_sizes
        whole = isinstance(codes, Tensor) and not (codes.is_floating_point() or codes.is_complex())
        if not whole or codes.ndim < 2 or (len(sizes) > 1 and codes.shape[1] != len(sizes)):
            found = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
            wanted = "(B, ...)" if len(sizes) == 1 else f"(B, {len(sizes)}, ...)"
            raise UserError(
                f"{self.name}: declares indices of sizes {list(sizes)}, but encode returned {found}; whole numbers "
                f"{wanted} are needed, or a method indices(codes) that returns them"
            )
        self.codes_shape = tuple(codes.shape)
        indices = (codes.flatten(1)[:, None] if len(sizes) == 1 else codes.flatten(2)).long()
        for k, size in enumerate(sizes):
            low, high = int(indices[:, k].min()), int(indices[:, k].max())
            if low < 0 or high >= size:
                raise UserError(f"{self.name}: index {high if high >= size else low} of a codebook of {size} rows")
        return indices


Model = Autoencoder | Foreign


def load_foreign(
    name: str, options: Mapping[str, Any] | None = None, convention: Mapping[str, Any] | None = None
) -> Foreign:
    """The model that ``package.module:load`` returns when it is called with ``options``.

    convention: fields of Convention that replace what the object declares. Raises UserError where it cannot be
    imported, refuses the options, or returns something that is no tokenizer.
    """
    if not is_path(name):
        raise UserError(f"'{name}' is not a model; write {PATH}")
    function = load(name, "model")
    try:
        with torch.random.fork_rng(devices=[]):
            model = function(**(options or {}))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or [""]
        raise UserError(
            f"{name}: failed with options {dict(options or {})}: {type(error).__name__}: {lines[0]}"
        ) from error
    has = [method for method in ("encode", "decode", "reconstruct") if callable(getattr(model, method, None))]
    if "reconstruct" not in has and len(has) < 2:
        lacks = f"with {has[0]} alone" if has else "without any of them"
        raise UserError(
            f"{name}: returned a {type(model).__name__} {lacks}; it needs encode and decode, or reconstruct"
        )
    declared = {key: getattr(model, key) for key in ("range", "output_range", "channels") if hasattr(model, key)}
    return Foreign(model, name, read_convention({**declared, **(convention or {})}, name))


def read_convention(values: Mapping[str, Any], where: str) -> Convention:
    """Raises UserError for a range that is none, or unknown channels."""
    read: dict[str, Any] = {}
    for key in ("range", "output_range"):
        if (given := values.get(key)) is None:
            continue
        numbers = isinstance(given, list | tuple) and all(isinstance(v, int | float) for v in given)
        if not numbers or len(given) != 2 or not -math.inf < given[0] < given[1] < math.inf:
            raise UserError(f"{where}: {key} {given!r}: must be the values of black and white, such as [0, 1]")
        read[key] = (float(given[0]), float(given[1]))
    if "channels" in values:
        choose(f"{where}: channels", values["channels"], ("rgb", "bgr"))
        read["channels"] = values["channels"]
    return Convention(**read)

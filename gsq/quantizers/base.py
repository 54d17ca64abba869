"""The interface of quantizers with its checks, and the look-up.

Shapes: B images, D latent channels, K indices of a latent position, V codebook rows, d channels of a row,
h x w latent positions. ``codebook`` has what quantizers with learned rows share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from gsq.config.axes import bits
from gsq.config.parts import is_path, options_of
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.quantizers.lookup import nearest_rows, nearest_rows_expanded

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NonFiniteLatent(ValueError):
    """The latent holds NaN or infinity: the encoder has diverged."""


class QuantizerOutput(NamedTuple):
    latent: Tensor
    """(B, D, h, w), float32: the quantized latent, with a straight-through gradient to the input."""
    indices: Tensor
    """(B, K, h, w), int64; index k lies in [0, index_sizes[k])."""
    loss: Tensor
    """Scalar, float32: codebook, commitment and entropy terms, weighted."""


class Quantizer(nn.Module):
    """Base class of quantizers, which define ``_quantize`` and ``_decode`` and compute in float32 under any autocast.

    The file of a quantizer declares its kinds in ``KINDS`` (``gsq.config.kinds``); nothing else names it.
    """

    shared_codebook = False
    """Whether all indices select from the same rows."""
    undecayed: tuple[str, ...] = ("codebook",)
    """Names of parameters or modules that get no weight decay."""
    own = ""
    """Import path of a quantizer of a user's own, whose output is checked."""

    def __init__(self, latent_dim: int, groups: int, index_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_dim, self.groups, self.index_sizes = latent_dim, groups, index_sizes

    @classmethod
    def build(cls, config: RunConfig) -> Self:
        """The quantizer of a config: each argument of the constructor is the config's value of that name or, of a
        user's own class, an option that its dataclass ``Options`` declares."""
        q = config.quantizer
        resolved: dict[str, Any] = {
            "latent_dim": config.model.latent_dim,
            "init": config.codebook_init,
            "lookup_norm": config.lookup_norm,
            "levels": config.index_sizes if not is_path(q.kind) else q.levels,
            **(options_of(q.kind, "quantizer.kind", q.options) if is_path(q.kind) else {}),
        }
        names = inspect.signature(cls).parameters
        if unknown := [name for name in names if name not in resolved and not hasattr(q, name)]:
            raise UserError(
                f"quantizer.kind: '{q.kind}' is built with '{unknown[0]}', which is neither a key of quantizer nor one "
                "of its Options; add it to the dataclass Options, or define the class method build"
            )
        given: dict[str, Any] = {name: resolved[name] if name in resolved else getattr(q, name) for name in names}
        return cls(**given)

    @property
    def codebook_size(self) -> int:
        """V, the largest number of values of an index."""
        return max(self.index_sizes)

    @property
    def bits_per_token(self) -> float:
        """Bits of one latent position: the sum of log2 over its indices."""
        return bits(self.index_sizes)

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """latent: (B, D, h, w), any floating dtype.

        Raises ValueError for another shape, NonFiniteLatent for NaN or infinity.
        """
        if latent.ndim != 4 or latent.shape[1] != self.latent_dim:
            raise ValueError(f"latent must be (B, {self.latent_dim}, h, w), got {tuple(latent.shape)}")
        if not latent.isfinite().all():
            raise NonFiniteLatent("latent holds NaN or infinity: the encoder has diverged; lower the learning rate")
        with torch.autocast(latent.device.type, enabled=False):
            output = self._quantize(latent.float())
        if self.own:
            self._check_output(latent, output)
        return output

    def _check_output(self, latent: Tensor, output: QuantizerOutput) -> None:
        """Raise UserError where a quantizer of a user's own returns what the interface forbids."""
        wanted = (len(latent), len(self.index_sizes), *latent.shape[2:])
        limits = torch.tensor(self.index_sizes, device=latent.device).view(-1, 1, 1)
        wrong = ""
        if not isinstance(output, QuantizerOutput):
            wrong = f"returned a {type(output).__name__}; a QuantizerOutput (latent, indices, loss) is needed"
        elif output.latent.shape != latent.shape or output.latent.dtype != torch.float32:
            found = f"{tuple(output.latent.shape)} {output.latent.dtype}"
            wrong = f"returned a latent {found}; it must be {tuple(latent.shape)} torch.float32"
        elif output.indices.shape != wanted or output.indices.dtype != torch.int64:
            found = f"{tuple(output.indices.shape)} {output.indices.dtype}"
            wrong = f"returned indices {found}; they must be {wanted} torch.int64"
        elif bool(((output.indices < 0) | (output.indices >= limits)).any()):
            wrong = f"returned indices out of range; index k must be in [0, {list(self.index_sizes)}[k])"
        elif not output.latent.isfinite().all():
            wrong = "returned NaN or infinity for a latent that has neither"
        elif output.loss.shape != ():
            wrong = f"returned a loss of shape {tuple(output.loss.shape)}; it must be a scalar"
        if wrong:
            raise UserError(f"quantizer.kind: '{self.own}' {wrong}")

    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, K, h, w) whole numbers -> (B, D, h, w) float32: the latent that ``forward`` returned, bit for bit.

        Raises ValueError for another shape or dtype, or an index out of its range.
        """
        count = len(self.index_sizes)
        if indices.ndim != 4 or indices.shape[1] != count:
            raise ValueError(f"indices must be (B, {count}, h, w), got {tuple(indices.shape)}")
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise ValueError(f"indices must be whole numbers, such as int64, got {indices.dtype}")
        indices = indices.long()
        limits = torch.tensor(self.index_sizes, device=indices.device).view(-1, 1, 1)
        wrong = (indices < 0) | (indices >= limits)
        if wrong.any():
            image, group, y, x = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"index {int(indices[image, group, y, x])} of group {group} is out of range: it must be in "
                f"[0, {self.index_sizes[group]})"
            )
        with torch.autocast(indices.device.type, enabled=False):
            return self._decode(indices)

    def update_codebook(self, all_reduce: Callable[[Tensor], None] = lambda tensor: None) -> None:
        """Update a codebook that follows its latents. Call it once per step, after the step's training forward passes.

        all_reduce sums a tensor in place over all processes; each of them calls it equally often. Does nothing if the
        optimiser updates the codebook, or if there is none.
        """

    def discard_pending(self) -> None:
        """Forget the forward passes since the last update, because their step is skipped."""

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        raise NotImplementedError

    def _decode(self, indices: Tensor) -> Tensor:
        raise NotImplementedError


def straight_through(value: Tensor, latent: Tensor) -> Tensor:
    """``value`` bit for bit (the added difference is exactly zero), with the gradient going to ``latent``."""
    return value.detach() + (latent - latent.detach())


def look_up(vectors: Tensor, codebook: Tensor, precision: str, *, normalise: bool = False) -> Tensor:
    """(..., d) and (V, d) -> (...) int64: nearest rows; ``normalise`` first divides both sides by their l2 norms.

    precision: "exact", or "float32" or "bfloat16" for the inexact |z|^2 + |c|^2 - 2 z.c in that type.
    """
    queries = vectors.detach().reshape(-1, vectors.shape[-1])
    if precision == "exact":
        found = nearest_rows(queries, codebook.detach(), normalise=normalise)
    else:
        found = nearest_rows_expanded(queries, codebook.detach(), PRECISIONS[precision], normalise=normalise)
    return found.view(vectors.shape[:-1])


def initial_rows(shape: tuple[int, ...], init: str) -> Tensor:
    """(..., V, d) float32. "spherical": uniform on the unit sphere; "uniform": each entry in [-1/V, 1/V], like VQ-GAN.
    At d = 1, where the sphere is two points, both are uniform in [-1, 1], like the authors' code."""
    if shape[-1] == 1:
        return torch.empty(shape).uniform_(-1, 1)
    if init == "uniform":
        return torch.empty(shape).uniform_(-1 / shape[-2], 1 / shape[-2])
    return nn.functional.normalize(torch.randn(shape), dim=-1)

"""Read a published checkpoint into a module, or give the module random weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gsq.errors import UserError
from gsq.pretrained.state import load_exactly, read_tensors

Renames = Sequence[tuple[str, str]]
Peer = TypeVar("Peer", bound=nn.Module)


def filled(peer: Peer, checkpoint: str, seed: int, renames: Renames = ()) -> Peer:
    """The module with the weights of a file, or with random ones that ``seed`` decides if ``checkpoint`` is empty.

    renames: regular expressions from published names to those of the module. The module's attribute ``weights`` says
    which they are. Raises UserError for a file that cannot be read, lacks keys or has other shapes.
    """
    named: Any = peer
    if checkpoint:
        path = Path(checkpoint).expanduser()
        load_exactly(peer, _published(peer, read_tensors(path), renames), str(path))
        named.weights = f"file {path.name}"
    else:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in peer.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        named.weights = "random"
    return peer.eval().requires_grad_(False)


def _published(peer: nn.Module, content: Mapping[str, Any], renames: Renames) -> dict[str, Tensor]:
    """The tensors of the module, by its names: out of a trainer's file, and averaged where that has averages."""
    state: Mapping[str, Any] = content
    for key in ("state_dict", "ema", "model"):
        if isinstance(inner := content.get(key), Mapping):
            state = inner
            break
    wanted = peer.state_dict()
    renames = ((r"^first_stage_model\.", ""), *renames)
    # Lightning's averages: names without dots.
    averaged = {f"model_ema.{name.replace('.', '')}": name for name in wanted}
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, ours in renames:
            name = re.sub(pattern, ours, name)
        if isinstance(value, Tensor) and name.partition(".")[0] in {one.partition(".")[0] for one in wanted}:
            found[name] = value.float()
    found |= {averaged[name]: value.float() for name, value in state.items() if name in averaged}
    if not found:
        raise UserError(
            f"checkpoint: none of its {len(state)} entries is of this model; the first is {next(iter(state), '-')}"
        )
    # Counters of training, which no tokenizer reads.
    return {name: value for name, value in found.items() if name in wanted or not name.startswith("quantize.")}


def nearest(latent: Tensor, rows: Tensor, *, inner: bool = False, block: int = 4096) -> Tensor:
    """Index of the nearest row (or of the largest inner product) for latents (B, C, h, w): (B, h, w), int64."""
    flat = latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
    offset = 0 if inner else rows.square().sum(1) / 2
    found = [(part @ rows.T - offset).argmax(1) for part in flat.split(block)]
    return torch.cat(found).view(len(latent), *latent.shape[2:])

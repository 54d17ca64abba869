"""Frozen networks, files of tensors, and loading exactly the tensors that a module has."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gsq.errors import UserError


class Frozen(nn.Module):
    """A network that stays in evaluation mode, since batch-norm statistics are part of what it computes."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], where: str, assign: bool = False) -> None:
    """Load exactly these tensors. Raises UserError, which names some, if names or shapes differ or one is not finite.

    where: begins the message, such as the file. assign: take the tensors themselves (of a module on "meta").
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    shapes = [f"{n} {found[n]} for {wanted[n]}" for n in wanted if n in found and found[n] != wanted[n]]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", sorted(wanted.keys() - found.keys())),
            ("unexpected", sorted(found.keys() - wanted.keys())),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise UserError(f"{where}: the weights are of another architecture than the config: {'; '.join(problems)}")
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{where}: weights that are not finite numbers: {', '.join(broken[:3])}")
    model.load_state_dict(dict(state), assign=assign)


def read_tensors(path: Path) -> dict[str, Any]:
    """The content of a .safetensors or torch.save file of tensors and plain values. Raises UserError."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            # torch warns of pickle protocols in a damaged file.
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors and plain values, which gsq does not unpickle, because that could run "
            "any code"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, a state dict is needed")
    return found

"""NVIDIA's Cosmos image tokenizers, which are published as TorchScript: an encoder.jit and a decoder.jit.

Their network is inside these files and is not rebuilt here. Running a TorchScript file runs the program in it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsq.errors import UserError
from gsq.files import sha256_of

# Levels of the discrete tokenizers' finite scalar quantizer.
LEVELS = (8, 8, 8, 5, 5, 5)


class Cosmos:
    """A discrete image tokenizer (DI8x8 or DI16x16): images in [-1, 1] to indices (B, h, w) below 64,000, and back."""

    quantizer = "fsq"
    codebook_size = 64_000
    latent_dim = len(LEVELS)

    def __init__(self, encoder: Path, decoder: Path) -> None:
        read = []
        for path in (encoder, decoder):
            try:
                read.append(torch.jit.load(str(path), map_location="cpu").float().eval())  # type: ignore[no-untyped-call]
            except (RuntimeError, ValueError, OSError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(f"{path}: cannot be read as TorchScript ({reason})") from None
        self.encoder, self.decoder = read
        hashes = [sha256_of(path) for path in (encoder, decoder)]
        # Their programs count too.
        self.weights_sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
        self.weights = f"file {encoder.parent.name}/{encoder.name}"

    def encode(self, images: Tensor) -> Any:
        return self.encoder(images)

    def indices(self, codes: Any) -> Any:
        """The encoder returns indices, codes and more."""
        return codes[0]

    def decode(self, codes: Any) -> Tensor:
        return self.decoder(codes[0])


def cosmos(folder: str) -> Cosmos:
    """The tokenizer in a folder as NVIDIA publishes it, such as Cosmos-Tokenizer-DI16x16."""
    place = Path(folder).expanduser()
    files = place / "encoder.jit", place / "decoder.jit"
    for file in files:
        if not file.is_file():
            raise UserError(f"{place}: has no {file.name}; name the folder that holds encoder.jit and decoder.jit")
    return Cosmos(*files)

"""A training program of your own: a small character language model.

Use it in a sweep with   program: "gsq.templates.program:train"
gsq calls ``train`` once for each cell, on any queue, and again after a kill: what it saves it finds in ``run.state``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gsq

BATCH, CONTEXT = 16, 8


def data(config: dict[str, Any]) -> str:
    """What the program reads: a change of it is another run."""
    return gsq.fingerprint(config["text"])


class Model(nn.Module):
    """Predicts a byte from the ``CONTEXT`` bytes before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.layers = nn.Sequential(nn.Linear(CONTEXT * width, 4 * width), nn.GELU(), nn.Linear(4 * width, 256))

    def forward(self, context: Tensor) -> Tensor:
        """(B, CONTEXT) int64 -> (B, 256) logits."""
        logits: Tensor = self.layers(self.embedding(context).flatten(1))
        return logits


def batch(text: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts (B, CONTEXT) at these places of a text, and the byte after each (B,)."""
    return torch.stack([text[p : p + CONTEXT] for p in places.tolist()]), text[places + CONTEXT]


def train(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """config: width, steps, seed and text, the keys of the sweep. Returns the final metrics."""
    text = torch.frombuffer(bytearray(Path(config["text"]).read_bytes()), dtype=torch.uint8).long()
    held_out = len(text) * 9 // 10
    torch.manual_seed(config["seed"])
    model = Model(config["width"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    random = torch.Generator().manual_seed(config["seed"])
    begun = 0
    if run.state is not None:
        model.load_state_dict(run.state["model"])
        optimizer.load_state_dict(run.state["optimizer"])
        random.set_state(run.state["random"])
        begun = run.state["step"]
    for step in range(begun + 1, config["steps"] + 1):
        places = torch.randint(held_out - CONTEXT - 1, (BATCH,), generator=random)
        context, wanted = batch(text, places)
        loss = nn.functional.cross_entropy(model(context), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        run.log(step, train_loss=loss.item())
        if run.stop_requested or step % 50 == 0:
            run.save(
                {
                    "step": step,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "random": random.get_state(),
                }
            )
    with torch.no_grad():
        context, wanted = batch(text, torch.arange(held_out, len(text) - CONTEXT - 1))
        loss = nn.functional.cross_entropy(model(context), wanted)
    return {"loss": loss.item()}

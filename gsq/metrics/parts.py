"""How the images are split into parts for the inception score."""

from __future__ import annotations

# Parts of the inception score.
SPLITS = 10
# The score's parts where SPLITS does not divide the number of images; the first ones were cut otherwise.
FIRST_PARTS = f"logits without bias, {SPLITS} consecutive parts"
PARTS = f"logits without bias, {SPLITS} consecutive parts cut as in torch-fidelity"

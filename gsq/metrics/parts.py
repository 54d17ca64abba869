"""How the images are split into parts for the inception score."""

from __future__ import annotations

# Parts of the inception score.
SPLITS = 10
# The score's parts if SPLITS does not divide the number of images, in the first protocols and now.
FIRST_PARTS = f"logits without bias, {SPLITS} consecutive parts"
PARTS = f"logits without bias, {SPLITS} consecutive parts cut as in torch-fidelity"

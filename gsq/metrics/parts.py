"""The constants of metrics that a protocol names. Imports no torch."""

from __future__ import annotations

from gsq.config.run import NEIGHBOURS

# Parts of the inception score.
SPLITS = 10
# The score's parts if SPLITS does not divide the number of images, in the first protocols and now.
FIRST_PARTS = f"logits without bias, {SPLITS} consecutive parts"
PARTS = f"logits without bias, {SPLITS} consecutive parts cut as in torch-fidelity"

# The kernel of CMMD.
SIGMA, SCALE = 10.0, 1000.0
CMMD = f"Gaussian kernel of sigma {SIGMA:g}, times {SCALE:g}, first 10000 images"
PRECISION_RECALL = f"{NEIGHBOURS} neighbours, first 10000 images"

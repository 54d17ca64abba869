"""The constants of metrics that a protocol names. Imports neither torch nor numpy, which a plan does without."""

from __future__ import annotations

from gsq.config.run import NEIGHBOURS

# Parts of the inception score.
SPLITS = 10
# The score's parts if SPLITS does not divide the number of images, in the first protocols and now.
FIRST_PARTS = f"logits without bias, {SPLITS} consecutive parts"
PARTS = f"logits without bias, {SPLITS} consecutive parts cut as in torch-fidelity"

# Largest number of images in a subset of KID, and of images used, so that memory does not grow with the data set.
SUBSET = 1000
IMAGES = 10 * SUBSET
KID = f"cubic kernel, pairs left out, first {IMAGES} images in parts of at most {SUBSET}"

# The kernel of CMMD.
SIGMA, SCALE = 10.0, 1000.0
CMMD = f"Gaussian kernel of sigma {SIGMA:g}, times {SCALE:g}, first 10000 images"
PRECISION_RECALL = f"{NEIGHBOURS} neighbours, first 10000 images"

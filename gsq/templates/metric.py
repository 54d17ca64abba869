"""A metric of your own: the largest error of an image.

Use it in a sweep with   set: {evaluation.metrics: ["gsq.templates.metric:Mine"]}
Keep metrics in a file apart from what trains: a change of this file is another protocol, never another run.
"""

from __future__ import annotations

from torch import Tensor


class Mine:
    """Called with reconstructions and originals, (B, 3, H, W) float32 in [-1, 1]; the mean over images is reported."""

    column = "largest_error"
    """The metric's column in the results table, where laws and figures find it."""

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        """(B,): a value for each image, which does not depend on the others."""
        return (images - originals).abs().flatten(1).amax(1)

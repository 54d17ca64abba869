"""Which rows of a codebook are new."""

from __future__ import annotations

import torch
from test_lookup import first_equal, whole

from gsq.quantizers import lookup_index


def test_distinct_rows() -> None:
    rows = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [2.0, 1.0], [1.0, 2.0], [0.0, 1.0], [2.0, 1.0]]).double()
    assert lookup_index.distinct(rows).tolist() == [0, 2, 3]
    many = whole(5000, 4, 53).double()
    assert torch.equal(lookup_index.distinct(many), torch.unique(first_equal(many)))

"""Inception-v3 of 2015-12-05 against what torch-fidelity, pytorch-fid and clean-fid compute.

fixtures/inception.npz holds their numbers, made by fixtures/make_inception_reference.py with seeded random weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seeded_weights import seeded_images, seeded_weights
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gsq.config.flops import INCEPTION_MACS
from gsq.errors import UserError
from gsq.pretrained.inception import InceptionFeatures, InceptionV3
from gsq.pretrained.weights import REGISTRY, file_sha256, find_weights, verified_weights

FIXTURE = Path(__file__).parent / "fixtures" / "inception.npz"
PROTOCOLS = ("inception", "inception_pytorch_fid", "inception_clean_fid")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def state(reference: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return seeded_weights(json.loads(str(reference["shapes"])))


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor]) -> InceptionV3:
    return InceptionV3(state)


pytestmark = pytest.mark.usefixtures("forget_verified")


def test_flops_counts_the_network(network: InceptionV3) -> None:
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 299, 299))
    assert counter.get_total_flops() == 2 * INCEPTION_MACS


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pool_features_of_the_published_networks(
    protocol: str, network: InceptionV3, reference: dict[str, np.ndarray]
) -> None:
    extractor = InceptionFeatures(protocol, network)
    for i, row in enumerate(reference["images"].tolist()):
        features, logits = extractor(seeded_images(*row).float() / 127.5 - 1)
        wanted = reference[f"{protocol}_{i}"]
        # The three differ from one another by 0.1 and more.
        assert np.abs(wanted).max() > 10
        np.testing.assert_allclose(features.numpy(), wanted, rtol=0, atol=1e-4)
        if protocol == "inception":
            np.testing.assert_allclose(logits.numpy(), reference[f"logits_{i}"], rtol=0, atol=1e-4)


def test_clean_fids_resize_is_pillows() -> None:
    """Float channels, bicubic, antialiased when it shrinks, clipped."""
    resize = InceptionFeatures.RESIZES["inception_clean_fid"]
    for height, width in ((64, 48), (400, 310)):
        images = seeded_images(1, height, width, 5)
        channels = [
            np.asarray(Image.fromarray(c.numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
            for c in images[0]
        ]
        found = (resize(images.float() / 127.5 - 1)[0] + 1) * 127.5
        np.testing.assert_allclose(found.numpy(), np.stack(channels).clip(0, 255), rtol=0, atol=3e-3)


def test_stays_frozen_and_in_evaluation_mode(network: InceptionV3) -> None:
    assert not any(m.training for m in network.train().modules())
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("damage", ["another shape", "missing", "too many"])
def test_another_networks_weights_are_refused(state: dict[str, Tensor], damage: str) -> None:
    state = dict(state)
    if damage == "missing":
        del state["Mixed_6b.branch7x7_2.conv.weight"]
    elif damage == "too many":
        state["AuxLogits.fc.weight"] = torch.zeros(1)
    else:
        # torchvision's classifier.
        state["fc.weight"] = torch.zeros(1000, 2048)
    name = {"missing": r"Mixed_6b\.branch7x7_2\.conv", "too many": "AuxLogits", "another shape": r"fc\.weight"}[damage]
    with pytest.raises(UserError, match=rf"inception weights: {name}.*another network's"):
        InceptionV3(state)


def test_either_published_name_will_do(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch-fidelity and pytorch-fid publish one file under two names; another content is refused under both."""
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path))
    entry = REGISTRY["inception"]
    with pytest.raises(UserError, match=r"'inception'.*weights-inception-2015.*pt_inception-2015.*GSQ_WEIGHTS"):
        InceptionFeatures()
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(state, path)
    assert find_weights("inception") == path
    with pytest.raises(UserError, match="expected 6726825d"):
        InceptionFeatures()
    file_sha256.cache_clear()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(REGISTRY, "inception", dataclasses.replace(entry, sha256=sha256))
    assert len(InceptionFeatures().network.state_dict()) > 100
    path.rename(tmp_path / entry.file)
    verified_weights.cache_clear()
    assert verified_weights("inception").name == entry.file

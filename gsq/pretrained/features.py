"""Frozen networks for losses and discriminators: VGG16, AlexNet, ResNet50 and DINOv2.

Shapes: B images, C channels, H x W pixels, N tokens.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.errors import UserError
from gsq.pretrained.efficientnet import ImageNetInput
from gsq.pretrained.state import Frozen
from gsq.pretrained.weights import REGISTRY, verified_weights


class _Convolutions(nn.Module):
    """The convolutions of a torchvision network, frozen: (B, 3, H, W) ImageNet-normalised -> the maps for LPIPS."""

    network: ClassVar[str]
    # For each level: the arguments of its max pooling, if it begins with one, then index in the weight file, outputs,
    # kernel, stride and padding of each convolution.
    levels: ClassVar[tuple[tuple[tuple[int, int] | None, tuple[tuple[int, int, int, int, int], ...]], ...]]
    channels: ClassVar[tuple[int, ...]]

    def __init__(self, state: dict[str, Tensor]) -> None:
        """``state``: torchvision's state dict. Raises UserError if it is another network's."""
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = 3
        for pool, convolutions in self.levels:
            stage = nn.Sequential(*([nn.MaxPool2d(*pool)] if pool else []))
            for index, outputs, kernel, stride, padding in convolutions:
                convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
                weight, bias = state.get(f"features.{index}.weight"), state.get(f"features.{index}.bias")
                if weight is None or bias is None or weight.shape != convolution.weight.shape:
                    raise UserError(
                        f"{self.network} weights: features.{index}.weight should be {tuple(convolution.weight.shape)}, "
                        f"found {None if weight is None else tuple(weight.shape)}"
                    )
                convolution.load_state_dict({"weight": weight, "bias": bias})
                stage.extend([convolution, nn.ReLU()])
                inputs = outputs
            self.stages.append(stage)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class VGG16Features(_Convolutions):
    """The convolutions of VGG16, five maps."""

    network = "VGG16"
    LAYERS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    channels = tuple(level[-1] for level in LAYERS)
    _FIRST = (0, 5, 10, 17, 24)
    levels = tuple(
        ((2, 2) if first else None, tuple((first + 2 * i, width, 3, 1, 1) for i, width in enumerate(widths)))
        for first, widths in zip(_FIRST, LAYERS, strict=True)
    )


class AlexNetFeatures(_Convolutions):
    """The convolutions of AlexNet, five maps."""

    network = "AlexNet"
    levels = (
        (None, ((0, 64, 11, 4, 2),)),
        ((3, 2), ((3, 192, 5, 1, 2),)),
        ((3, 2), ((6, 384, 3, 1, 1),)),
        (None, ((8, 256, 3, 1, 1),)),
        (None, ((10, 256, 3, 1, 1),)),
    )
    channels = (64, 192, 384, 256, 256)


class VGG16(VGG16Features):
    """VGG16 with its classifier, (B, 3, 224, 224) ImageNet-normalised -> logits (B, 1000)."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        """``state`` as for VGG16Features; it decides the widths of the classifier."""
        super().__init__(state)
        layers: list[nn.Module] = [nn.Flatten()]
        for index in (0, 3, 6):
            weight, bias = state.get(f"classifier.{index}.weight"), state.get(f"classifier.{index}.bias")
            if weight is None or bias is None:
                raise UserError(f"VGG16 weights: classifier.{index} is missing; the file has the convolutions alone")
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


class ResNet50(Frozen):
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
        """The network with the ImageNet weights. Raises UserError if their file is missing or another network's."""
        path = verified_weights("resnet50")
        network = cls()
        try:
            network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        except RuntimeError as error:
            raise UserError(f"resnet50 weights: {path} is another network's ({_first_mismatch(error)})") from None
        return network

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        for level in range(1, 5):
            x = getattr(self, f"layer{level}")(x)
        return self.fc(x.mean((2, 3)))


def _first_mismatch(error: Exception) -> str:
    """The first problem in torch's message, whose first line only names the network."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)][:200] if lines else type(error).__name__


class DINOv2(Frozen):
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
        """Raises UserError if the file or the library is missing, or the file is another network's."""
        super().__init__()
        path = verified_weights("dinov2_vits14_reg")
        transformers = importlib.import_module("transformers")
        if not hasattr(transformers, "Dinov2WithRegistersModel"):
            raise UserError(
                f"transformers {transformers.__version__} does not know DINOv2 with registers; "
                "pip install -U 'gsq[dino]'"
            )
        # Problems are raised below instead.
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        try:
            self.network, report = transformers.Dinov2WithRegistersModel.from_pretrained(
                path.parent,
                config=transformers.Dinov2WithRegistersConfig(**self.SIZES),
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # Its type depends on the problem and the library's version.
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
        # Newer versions of the library keep the file's dtype.
        self.float().eval().requires_grad_(False)

    @property
    def token_channels(self) -> tuple[int, ...]:
        return (self.SIZES["hidden_size"],) * (1 + len(self.BLOCKS))

    def _blocks(self, images: Tensor) -> list[Tensor]:
        """Embedded tokens and the output of each block, (B, N, C), with class token and registers first."""
        states = [self.network.embeddings(self.prepare(images))]
        for block in self.network.encoder.layer:
            out = block(states[-1])
            # Older versions of the library return a tuple.
            states.append(out[0] if isinstance(out, tuple) else out)
        return states

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Tokens before the first block and after each of BLOCKS: five times (B, C, N)."""
        states = self._blocks(images)
        return [state.transpose(1, 2) for state in (states[0], *(states[i + 1] for i in self.BLOCKS))]

    def forward(self, images: Tensor) -> Tensor:
        """The class token after the last norm, (B, C), like the published network."""
        return self.network.layernorm(self._blocks(images)[-1])[:, 0]

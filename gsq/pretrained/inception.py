"""Inception-v3 of 2015-12-05, the network behind published FID values, in plain torch.

Shapes: B images, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gsq.errors import UserError
from gsq.pretrained.state import Frozen
from gsq.pretrained.weights import verified_weights

SIZE = 299
CLASSES = 1008
# sFID takes the first channels of this block's 1 x 1 convolution (mixed_6/conv of the graph), a map of 17 x 17.
SPATIAL, SPATIAL_CHANNELS = "Mixed_6d", 7
SPATIAL_DIM = SPATIAL_CHANNELS * 17 * 17


@dataclass(frozen=True)
class Layer:
    """A convolution of a mixed block by the name that the weight files give it."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    """A stride of 2 goes without padding; a stride of 1 pads to the input's size."""


@dataclass(frozen=True)
class Block:
    """Parallel chains of layers; a tuple at the end of a chain is parallel layers again."""

    chains: tuple[tuple[Layer | tuple[Layer, ...], ...], ...]
    pool: str
    """average or max (stride 1, then the layer branch_pool), or shrink (max, stride 2)."""
    pool_outputs: int = 0


def _chain(prefix: str, *layers: tuple[int, tuple[int, int]] | tuple[int, tuple[int, int], int]) -> tuple[Layer, ...]:
    return tuple(Layer(f"branch{prefix}_{i + 1}", *layer) for i, layer in enumerate(layers))


def _fork(prefix: str, outputs: int) -> tuple[Layer, ...]:
    return Layer(f"branch{prefix}a", outputs, (1, 3)), Layer(f"branch{prefix}b", outputs, (3, 1))


ONE, THREE, FIVE, WIDE, TALL = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def _block_35(pool_outputs: int) -> Block:
    return Block(
        (
            (Layer("branch1x1", 64),),
            _chain("5x5", (48, ONE), (64, FIVE)),
            _chain("3x3dbl", (64, ONE), (96, THREE), (96, THREE)),
        ),
        "average",
        pool_outputs,
    )


def _block_17(width: int) -> Block:
    return Block(
        (
            (Layer("branch1x1", 192),),
            _chain("7x7", (width, ONE), (width, WIDE), (192, TALL)),
            _chain("7x7dbl", (width, ONE), (width, TALL), (width, WIDE), (width, TALL), (192, WIDE)),
        ),
        "average",
        192,
    )


def _block_8(pool: str) -> Block:
    return Block(
        (
            (Layer("branch1x1", 320),),
            (Layer("branch3x3_1", 384), _fork("3x3_2", 384)),
            (*_chain("3x3dbl", (448, ONE), (384, THREE)), _fork("3x3dbl_3", 384)),
        ),
        pool,
        192,
    )


# Maps have 35, 17 and 8 pixels a side; 6a and 7a halve them. The last block pools by maximum where the others average,
# like the frozen graph of 2015 and unlike torchvision's Inception-v3.
BLOCKS: dict[str, Block] = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    "Mixed_6a": Block(
        ((Layer("branch3x3", 384, THREE, 2),), _chain("3x3dbl", (64, ONE), (96, THREE), (96, THREE, 2))), "shrink"
    ),
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": Block(
        (
            _chain("3x3", (192, ONE), (320, THREE, 2)),
            _chain("7x7x3", (192, ONE), (192, WIDE), (192, TALL), (192, THREE, 2)),
        ),
        "shrink",
    ),
    "Mixed_7b": _block_8("average"),
    "Mixed_7c": _block_8("max"),
}


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU; the norm is folded into the convolution once the weights are loaded."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)

    def fold(self) -> None:
        assert isinstance(self.bn, nn.BatchNorm2d)
        self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """A block of parallel branches, their outputs concatenated along the channels."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        self.pool = block.pool
        self.chains: list[list[tuple[str, ...]]] = []
        self.outputs = inputs if block.pool == "shrink" else block.pool_outputs
        for chain in block.chains:
            names, width = [], inputs
            for step in chain:
                layers = step if isinstance(step, tuple) else (step,)
                for layer in layers:
                    convolution = Convolution(width, layer.outputs, layer.kernel, layer.stride, layer.stride == 1)
                    self.add_module(layer.name, convolution)
                names.append(tuple(layer.name for layer in layers))
                width = layers[0].outputs
            self.chains.append(names)
            self.outputs += sum(layer.outputs for layer in layers)
        if block.pool != "shrink":
            self.branch_pool = Convolution(inputs, block.pool_outputs, ONE)

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        for chain in self.chains:
            y = x
            for (name,) in chain[:-1]:
                y = getattr(self, name)(y)
            branches += [getattr(self, name)(y) for name in chain[-1]]
        if self.pool == "shrink":
            branches.append(F.max_pool2d(x, 3, 2))
        elif self.pool == "max":
            branches.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:
            branches.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(branches, 1)


class InceptionV3(Frozen):
    """The classifier of TensorFlow's frozen graph of 2015-12-05 (Szegedy et al. 2016, 1,008 classes), frozen.

    Reads the weight file that pytorch-fid and torch-fidelity publish. Input: (B, 3, 299, 299), grey levels
    (x - 128) / 128. Checked against both packages' networks with the same random weights.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        """Raises UserError if ``state`` is another network's."""
        super().__init__()
        with torch.device("meta"):
            self.Conv2d_1a_3x3 = Convolution(3, 32, THREE, 2, padded=False)
            self.Conv2d_2a_3x3 = Convolution(32, 32, THREE, padded=False)
            self.Conv2d_2b_3x3 = Convolution(32, 64, THREE)
            self.Conv2d_3b_1x1 = Convolution(64, 80, ONE)
            self.Conv2d_4a_3x3 = Convolution(80, 192, THREE, padded=False)
            width = 192
            for name, block in BLOCKS.items():
                mixed = Mixed(width, block)
                self.add_module(name, mixed)
                width = mixed.outputs
            self.fc = nn.Linear(width, CLASSES)
        # Files made by older versions of torch lack the counters of batches.
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        wanted = {n: v.shape for n, v in self.state_dict().items() if not n.endswith("num_batches_tracked")}
        for name in (*wanted, *state):
            if name not in wanted or name not in state or state[name].shape != wanted[name]:
                raise UserError(
                    f"inception weights: {name} should be {tuple(wanted[name]) if name in wanted else 'absent'}, found "
                    f"{tuple(state[name].shape) if name in state else 'nothing'}; they are another network's"
                )
        self.load_state_dict(state, strict=False, assign=True)
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, Convolution):
                module.fold()

    @classmethod
    def pretrained(cls) -> InceptionV3:
        """The network with the published weights. Raises UserError if the file is missing or another one."""
        return cls(torch.load(verified_weights("inception"), weights_only=True, map_location="cpu"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pool features (B, 2048), and the logits without bias (B, 1008) that the inception score uses."""
        return self.everything(x)[:2]

    def everything(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``forward``, and the spatial features of sFID (Nash et al., arXiv 2103.03841): (B, 2023), by row, column and
        channel as in OpenAI's evaluator."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in BLOCKS:
            x = getattr(self, name)(x)
            if name == SPATIAL:
                # The block's first branch is the 1 x 1 convolution.
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T, spatial


def _tensorflow1(images: Tensor) -> Tensor:
    """Bilinear like TensorFlow 1 with unaligned corners: output pixel i lies at i * H / 299, without a half-pixel
    shift."""
    for axis in (3, 2):
        size = images.shape[axis]
        # TensorFlow uses float32, which decides the lower pixel where the product is a whole number.
        place = torch.arange(SIZE, dtype=torch.float32, device=images.device) * torch.tensor(size / SIZE)
        below = place.long().clamp_max(size - 1)
        share = (place - below).reshape(-1, *(1,) * (3 - axis))
        low = images.index_select(axis, below)
        high = images.index_select(axis, (below + 1).clamp_max(size - 1))
        images = low + (high - low) * share
    return images


def _pytorch(images: Tensor) -> Tensor:
    """Bilinear with half-pixel centres, not antialiased."""
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)


def _pillow(images: Tensor) -> Tensor:
    """Bicubic and antialiased like Pillow on float images, clipped to the valid grey levels."""
    resized = F.interpolate(images, (SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)


class InceptionFeatures(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> pool features (B, 2048) and logits without bias (B, 1008); with ``spatial`` also
    sFID's features (B, 2023).

    protocol: "inception" (torch-fidelity's resize to 299 pixels, TensorFlow 1's), "inception_pytorch_fid" or
    "inception_clean_fid". pytorch-fid scales grey levels to [-1, 1], the others to (x - 128) / 128.
    """

    RESIZES = {  # noqa: RUF012
        "inception": _tensorflow1,
        "inception_pytorch_fid": _pytorch,
        "inception_clean_fid": _pillow,
    }

    def __init__(self, protocol: str = "inception", network: InceptionV3 | None = None, spatial: bool = False) -> None:
        super().__init__()
        self.protocol, self.spatial = protocol, spatial
        self.network = network or InceptionV3.pretrained()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.RESIZES[self.protocol](images)
        if self.protocol != "inception_pytorch_fid":
            x = x * (255 / 256) - 1 / 256
        return self.network.everything(x) if self.spatial else self.network(x)

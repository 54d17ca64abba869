"""Vision transformers behind FD-DINOv2 and CMMD: DINOv2's ViT-L/14 and the image encoder of CLIP's ViT-L/14 at 336.

Shapes: B images, H x W pixels, N patches, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.pretrained.state import Frozen, load_exactly
from gsq.pretrained.weights import verified_weights


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, quick: bool) -> None:
        super().__init__()
        self.quick = quick
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, clip: bool) -> None:
        super().__init__()
        eps = 1e-5 if clip else 1e-6
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = _Attention(width, heads)
        self.ls1 = nn.Identity() if clip else _Scale(width)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = _MLP(width, quick=clip)
        self.ls2 = nn.Identity() if clip else _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, width: int, patch: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(Frozen):
    """Normalised images (B, 3, H, W) -> the class token after the last norm, (B, C), frozen.

    The state dict has the names of DINOv2's published one. Positions of another number of patches are interpolated as
    there (bicubic, the scale a tenth of a patch larger). With ``clip`` it is CLIP's encoder: patches without bias, a
    norm before the blocks, QuickGELU, no layer scale, and a projection of the class token to ``outputs``.
    """

    def __init__(
        self, width: int, depth: int, heads: int, *, side: int, patch: int = 14, clip: bool = False, outputs: int = 0
    ) -> None:
        """side: patches along an edge that the positions were trained with."""
        super().__init__()
        self.side, self.patch = side, patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, width))
        if not clip:
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = _Patches(width, patch, bias=not clip)
        self.norm_pre = nn.LayerNorm(width) if clip else nn.Identity()
        self.blocks = nn.ModuleList(_Block(width, heads, clip) for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-5 if clip else 1e-6)
        self.head = nn.Linear(width, outputs, bias=False) if clip else nn.Identity()
        self.eval().requires_grad_(False)

    def positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + N, C) for height x width patches."""
        if (height, width) == (self.side, self.side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        scale = [(size + 0.1) / self.side for size in (height, width)]
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], 1)
        x = self.norm_pre(x + self.positions(*(size // self.patch for size in images.shape[2:])))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


DINOV2: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "side": 37}
CLIP: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "side": 24, "clip": True, "outputs": 768}
# Patterns of the published names of CLIP's image encoder, and the names here.
_CLIP_NAMES = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^proj$", "head.weight"),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def clip_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder of a published state dict of CLIP, by the names of VisionTransformer, in float32."""
    state = {}
    for name, value in published.items():
        if not name.startswith("visual."):
            continue
        name = name.removeprefix("visual.")
        for pattern, ours in _CLIP_NAMES:
            name = re.sub(pattern, ours, name)
        value = value.float()
        shapes = {"cls_token": (1, 1, -1), "pos_embed": (1, *value.shape)}
        state[name] = value.T if name == "head.weight" else value.reshape(shapes.get(name, value.shape))
    return state


class _Normalised(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> the network's features of the images at ``size``, normalised by channel."""

    def __init__(
        self, network: nn.Module, size: int, mean: tuple[float, ...], deviation: tuple[float, ...], antialias: bool
    ) -> None:
        super().__init__()
        self.network, self.size, self.antialias = network, size, antialias
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = (images + 1) / 2
        if images.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=self.antialias)
            x = x.clamp(0, 1) if self.antialias else x
        return cast(Tensor, self.network((x - cast(Tensor, self.mean)) / cast(Tensor, self.deviation)))


def dinov2_features(network: VisionTransformer | None = None) -> nn.Module:
    """(B, 3, H, W) in [-1, 1] -> DINOv2's class token (B, 1024), as FD-DINOv2 (Stein et al., arXiv 2306.04675).

    Images are resized to 224 pixels, bicubic and antialiased like Pillow's, and normalised as ImageNet. Raises
    UserError if the weights are missing or another network's.
    """
    if network is None:
        network = VisionTransformer(**DINOV2)
        path = verified_weights("dinov2_vitl14")
        load_exactly(network, torch.load(path, weights_only=True, map_location="cpu"), f"dinov2_vitl14 weights: {path}")
    return _Normalised(network, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), True).eval()


def clip_features(network: VisionTransformer | None = None) -> nn.Module:
    """(B, 3, H, W) in [-1, 1] -> CLIP's image embedding (B, 768), not scaled, as CMMD takes it.

    Images are resized to 336 pixels, bicubic without antialiasing like CMMD's PyTorch code. Raises UserError if the
    weights are missing or another network's.
    """
    if network is None:
        network = VisionTransformer(**CLIP)
        path = verified_weights("clip_vitl14_336")
        # The published file is a TorchScript archive; its code is not called.
        state = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        load_exactly(network, clip_state(state), f"clip_vitl14_336 weights: {path}")
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return _Normalised(network, 336, mean, deviation, False).eval()

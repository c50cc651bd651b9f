"""Vision transformers (Dosovitskiy et al., 2021) for small images.

An image becomes 64 patches at most, whatever its size: 4x4 pixels of 32, one pixel of 8. Queries, keys and values are
plain Linears of their own, so that each can be decomposed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.train.models.registry import network

GRID = 8


class Attention(nn.Module):
    """Multi-head self-attention: ``proj(softmax(q k' / sqrt(d)) v)`` over the tokens, for each head.

    Args:
        dim: width of the tokens, a multiple of ``heads``.
        heads: number of heads, >= 1.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, dim) -> (batch, tokens, dim)``."""
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """An encoder block: ``x + attn(norm1(x))``, then ``x + fc2(gelu(fc1(norm2(x))))``, four times as wide inside."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, dim) -> (batch, tokens, dim)``."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches, a learned position for each, encoder blocks, norm, the mean over the tokens, Linear.

    No class token: on small sets the mean does as well. The positions fix the input's size; sides that are no multiple
    of the patch are filled up with zeros at the right and at the bottom.

    Args:
        dim: width of the tokens, a multiple of ``heads``.
        depth: number of encoder blocks, >= 1.
        heads: attention heads of each, >= 1.
        patch: side of the square patches in pixels, in [1, size].
        size: side of the images in pixels.
        classes: number of outputs.
        channels: number of input channels.
    """

    def __init__(self, *, dim: int, depth: int, heads: int, patch: int, size: int, classes: int, channels: int) -> None:
        super().__init__()
        side = -(-size // patch)
        self.fill = side * patch - size
        self.patch_embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, size, size)``."""
        tokens = self.patch_embed(F.pad(x, (0, self.fill, 0, self.fill))).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens + self.pos_embed)).mean(1))


@network("vit_tiny", minimum=4)
def vit_tiny(classes: int, channels: int, size: int) -> nn.Module:
    """The width, depth and heads of DeiT-Ti (192, 12, 3) on 8x8 patches; any ``size`` >= 4."""
    patch = -(-size // GRID)
    return VisionTransformer(dim=192, depth=12, heads=3, patch=patch, size=size, classes=classes, channels=channels)


@network("vit_mini", minimum=4)
def vit_mini(classes: int, channels: int, size: int) -> nn.Module:
    """A transformer for quick runs: width 128, 6 blocks, 4 heads, 1.2 M parameters; any ``size`` >= 4."""
    patch = -(-size // GRID)
    return VisionTransformer(dim=128, depth=6, heads=4, patch=patch, size=size, classes=classes, channels=channels)

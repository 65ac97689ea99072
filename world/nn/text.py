"""The built-in world's text encoder: a small transformer over the bytes of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING, START = 0, 1  # ids; byte b is b + 2
NUM_IDS = 258


@dataclass(frozen=True, slots=True)
class ByteTextConfig:
    text_dim: int  # of the rows it yields
    dim: int = 128
    num_heads: int = 4
    num_layers: int = 3
    max_bytes: int = 95  # a prompt's rows: a start row, then one a byte
    reach: int = 2  # bytes to each side that a layer's convolution mixes: what spells a word
    eps: float = 1e-6

    @property
    def max_rows(self) -> int:
        return self.max_bytes + 1


def byte_ids(text: str, max_bytes: int) -> list[int]:
    """The start id and the first bytes of a text, cut between characters; white space counts once."""
    data = " ".join(text.split()).encode("utf-8", errors="replace")[:max_bytes]
    data = data.decode("utf-8", errors="ignore").encode("utf-8")
    return [START, *(byte + 2 for byte in data)]


class Layer(nn.Module):
    def __init__(self, cfg: ByteTextConfig):
        super().__init__()
        self.cfg = cfg
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(cfg.dim, cfg.eps) for _ in range(3))
        self.conv = nn.Conv1d(cfg.dim, cfg.dim, 2 * cfg.reach + 1, padding=cfg.reach, groups=cfg.dim)
        self.gate, self.qkv, self.out = (
            nn.Linear(cfg.dim, cfg.dim),
            nn.Linear(cfg.dim, 3 * cfg.dim),
            nn.Linear(cfg.dim, cfg.dim),
        )
        self.ffn = nn.Sequential(
            nn.Linear(cfg.dim, 4 * cfg.dim), nn.GELU(approximate="tanh"), nn.Linear(4 * cfg.dim, cfg.dim)
        )

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x [B, n, dim]; real [B, n] is true where a row is not padding."""
        u = self.norm1(x)
        x = x + F.silu(self.gate(u)) * self.conv((u * real[..., None]).mT).mT
        q, k, v = self.qkv(self.norm2(x)).unflatten(-1, (3, self.cfg.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm3(x))


class ByteTextEncoder(nn.Module):
    def __init__(self, cfg: ByteTextConfig):
        super().__init__()
        self.cfg = cfg
        self.embedding = nn.Embedding(NUM_IDS, cfg.dim)
        self.position = nn.Parameter(torch.randn(cfg.max_rows, cfg.dim) * 0.02)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_layers))
        self.norm = nn.LayerNorm(cfg.dim, cfg.eps)
        self.project = nn.Linear(cfg.dim, cfg.text_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 [B, n] (`byte_ids`, padded at the end) -> rows [B, n, text_dim], zero where ids are padding.

        A padded batch trains; a prompt that is served goes alone, so that its bits depend on nothing else.
        """
        real = ids != PADDING
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, real)
        return self.project(self.norm(x)) * real[..., None]

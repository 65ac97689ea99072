"""How many floating-point operations a causal DiT's arithmetic is: a product of [m, k] and [k, n] counts 2 m k n.

L tokens in a chunk, S tokens attended to, T text rows, C width, F width of the feed-forward, per row and block:

| part | operations |
|---|---|
| self-attention's four linears | 8 L C^2 |
| cross-attention's q and out | 4 L C^2 |
| feed-forward | 4 L C F |
| self-attention | 4 L S C |
| cross-attention | 4 L T C |
| camera, once a chunk | 8 L C^2 |
| text K and V, once a prompt | 4 T C^2 |

Outside of blocks: patch embedding, head, camera and text embeddings. A commit leaves out what nobody reads: in the last
block all but K and V, and the head. Norms, rotations and activations are not counted, nor the time MLP, which runs once
in a server's life.
"""

from __future__ import annotations

from dataclasses import dataclass

from world.chunk import PATCH, Geometry
from world.nn.dit import DiTConfig


@dataclass(frozen=True, slots=True)
class Flops:
    """Of one row, at the attended length of a filled window."""

    step: int  # a denoise step
    commit: int
    camera: int  # once a chunk
    text: int  # once a prompt

    def chunk(self, num_steps: int) -> int:
        """Denoise steps, commit and camera of one player's chunk."""
        return num_steps * self.step + self.commit + self.camera


def count(cfg: DiTConfig, geometry: Geometry, attended_tokens: int) -> Flops:
    tokens, c, layers = geometry.chunk_tokens, cfg.dim, cfg.num_layers
    cells = PATCH * PATCH
    embed = 2 * tokens * cfg.in_channels * cells * c
    head = 2 * tokens * c * cfg.out_channels * cells
    keys_values = 4 * tokens * c * c
    block = self_linears(tokens, c) + 4 * tokens * c * c + 4 * tokens * c * cfg.ffn_dim
    block += attention(tokens, attended_tokens, c) + attention(tokens, cfg.text_len, c)
    control = 2 * tokens * cfg.control_channels * 64 * cells * c + 4 * tokens * c * c
    text = 2 * cfg.text_len * cfg.text_dim * c + 2 * cfg.text_len * c * c
    return Flops(
        step=embed + layers * block + head,
        commit=embed + (layers - 1) * block + keys_values,
        camera=control + layers * 8 * tokens * c * c,
        text=text + layers * 4 * cfg.text_len * c * c,
    )


def self_linears(tokens: int, dim: int) -> int:
    """q, k, v and out."""
    return 8 * tokens * dim * dim


def attention(queries: int, keys: int, dim: int) -> int:
    """Scores and their product with the values, over all heads."""
    return 4 * queries * keys * dim

"""The causal DiT of LingBot-World-Fast (Wan 2.1 with a camera branch): weights and arithmetic, no state.

A row is one chunk of one stream. Everything but self-attention is a row's own; self-attention goes through a `Memory`,
which knows where a row's past is (a slab when serving, a masked sequence when training). State-dict names are the
published checkpoint's. The residual stream, norms, modulation and head are float32; linears and attention run in the
dtype of their biases (which weights may be kept more coarsely than: `world.nn.fp8`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world.chunk import PATCH
from world.nn.attention import attend
from world.nn.rows import Keys, Pair, Quantised, ScaleShift, add, add_norm, linear_gelu, norm_turn, quantise

# What the published code keeps in float32; everything else may be cast to the serving dtype.
FLOAT32_PREFIXES = ("time_embedding.", "time_projection.", "head.")
FLOAT32_SUFFIXES = (".modulation", "norm_q.weight", "norm_k.weight", "norm3.weight", "norm3.bias")


def keeps_float32(key: str) -> bool:
    return key.startswith(FLOAT32_PREFIXES) or key.endswith(FLOAT32_SUFFIXES)


def served_dtypes(dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """What each weight of a DiT is in when it is served in a dtype."""
    return lambda key: torch.float32 if keeps_float32(key) else dtype


@dataclass(frozen=True, slots=True)
class DiTConfig:
    dim: int  # C
    num_heads: int  # N
    num_layers: int
    ffn_dim: int
    text_len: int
    text_dim: int
    control_channels: int = 6  # 6: `cam` (ray origin and direction); 7: `act` (ray direction and WASD)
    freq_dim: int = 256
    in_channels: int = 36
    out_channels: int = 16
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


class Memory(Protocol):
    def attend(self, layer_index: int, q: Tensor, keys: Keys, v: Tensor) -> Tensor:
        """Keep keys and v [B, L, N, d] of these rows, then attend with q [outputs, L, N, d], the first rows', to what
        each may see: [outputs, L, N, d]. There may be no outputs."""


def patchify(x: Tensor) -> Tensor:
    """[B, c, f, h, w] -> tokens [B, f * h/2 * w/2, c * 4], the patch innermost."""
    b, c, f, h, w = x.shape
    x = x.view(b, c, f, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 3, 5, 1, 4, 6)
    return x.reshape(b, -1, c * PATCH * PATCH)


def unpatchify(tokens: Tensor, f: int, h: int, w: int) -> Tensor:
    """[B, L, 4 c] with the channel innermost -> [B, c, f, h, w]."""
    b, c = tokens.shape[0], tokens.shape[-1] // PATCH**2
    x = tokens.view(b, f, h // PATCH, w // PATCH, PATCH, PATCH, c)
    return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(b, c, f, h, w)


def linear(layer: nn.Linear, x: Tensor | Quantised) -> Tensor:
    return layer(x.to(layer.bias.dtype) if isinstance(x, Tensor) else x)


def shared(layer: nn.Linear, x: Tensor) -> Tensor | Quantised:
    """x as this linear and others like it multiply it: where they are in FP8, rounded once for all."""
    return quantise(x, layer.weight.dtype) if layer.weight.itemsize == 1 else x


def mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Linear, activation, Linear, in the dtype of their biases."""
    return layers(x.to(layers[0].bias.dtype))


class HeadNorm(nn.Module):
    """RMS norm over the channels of all heads, which are then told apart and, with a turn, rotated."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, heads: int, turn: Pair | None) -> Tensor:
        return norm_turn(x, self.weight, self.eps, heads, turn)


class Attention(nn.Module):
    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(cfg.dim, cfg.dim) for _ in range(4))
        self.norm_q, self.norm_k = HeadNorm(cfg.dim, cfg.eps), HeadNorm(cfg.dim, cfg.eps)
        self.heads = cfg.num_heads

    def queries(self, x: Tensor | Quantised, turn: Pair | None = None) -> Tensor:
        return self.norm_q(linear(self.q, x), self.heads, turn)

    def keys(self, x: Tensor | Quantised, turn: Pair | None = None) -> Keys:
        projected = linear(self.k, x).unflatten(-1, (self.heads, -1))
        return Keys(projected, (self.norm_k.weight, self.norm_k.eps), turn)

    def values(self, x: Tensor | Quantised) -> Tensor:
        return linear(self.v, x).unflatten(-1, (self.heads, -1))

    def out(self, x: Tensor) -> Tensor:
        return linear(self.o, x.flatten(2))


class Block(nn.Module):
    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(cfg), Attention(cfg)
        self.norm3 = nn.LayerNorm(cfg.dim, cfg.eps)
        self.ffn = nn.Sequential(
            nn.Linear(cfg.dim, cfg.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(cfg.ffn_dim, cfg.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, cfg.dim) / cfg.dim**0.5)
        self.cam_injector_layer1, self.cam_injector_layer2 = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)
        self.cam_scale_layer, self.cam_shift_layer = nn.Linear(cfg.dim, cfg.dim), nn.Linear(cfg.dim, cfg.dim)
        self.eps = cfg.eps

    @property
    def dtype(self) -> torch.dtype:
        """Of what comes into its linears and of what it keeps."""
        return self.cross_attn.k.weight.dtype

    def camera(self, c: Tensor) -> Pair:
        """Scale and shift [B, L, C] of this block: they depend on the chunk's camera alone."""
        g = linear(self.cam_injector_layer2, F.silu(linear(self.cam_injector_layer1, c))) + c
        g = shared(self.cam_scale_layer, g)
        return linear(self.cam_scale_layer, g), linear(self.cam_shift_layer, g)

    def text(self, context: Tensor) -> Pair:
        """K and V [B, text_len, N, d] of a prompt for this block's cross-attention."""
        return self.cross_attn.keys(context).made(), self.cross_attn.values(context)

    def forward(
        self,
        x: Tensor,
        e0: Tensor,
        camera: ScaleShift,
        text: Pair,
        turn: Pair,
        memory: Memory,
        index: int,
        outputs: int,
    ) -> Tensor:
        """x float32 [B, L, C], e0 float32 [B, 6, C]. Only the first `outputs` rows go on past the memory."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation + e0).unsqueeze(2).unbind(1)  # [B, 1, C]
        x, u = add_norm(x, 1 + scale_a, shift_a, self.eps, self.dtype)
        u = shared(self.self_attn.q, u)
        keys, v = self.self_attn.keys(u, turn), self.self_attn.values(u)
        if outputs < x.shape[0]:
            x, u, gate_a, shift_f, scale_f, gate_f = (t[:outputs] for t in (x, u, gate_a, shift_f, scale_f, gate_f))
            camera = camera.first(outputs)
            text, turn = ((a[:outputs], b[:outputs]) for a, b in (text, turn))
        seen = memory.attend(index, self.self_attn.queries(u, turn) if outputs else v[:0], keys, v)
        if outputs == 0:
            return x
        weight, bias = self.norm3.weight.float(), self.norm3.bias.float()
        x, u = add_norm(x, weight, bias, self.eps, self.dtype, self.self_attn.out(seen), gate_a, camera)
        seen = attend(self.cross_attn.queries(u), *text)
        x, u = add_norm(x, 1 + scale_f, shift_f, self.eps, self.dtype, self.cross_attn.out(seen))
        return add(x, self.ffn[2](linear_gelu(self.ffn[0], u)), gate_f)


class Head(nn.Module):
    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.head = nn.Linear(cfg.dim, cfg.out_channels * PATCH * PATCH)
        self.modulation = nn.Parameter(torch.randn(1, 2, cfg.dim) / cfg.dim**0.5)
        self.eps = cfg.eps

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation + e[:, None]).unsqueeze(2).unbind(1)
        return linear(self.head, F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift)


class CausalDiT(nn.Module):
    def __init__(self, cfg: DiTConfig):
        super().__init__()
        c = cfg.dim
        self.cfg = cfg
        self.patch_embedding = nn.Conv3d(cfg.in_channels, c, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.patch_embedding_wancamctrl = nn.Linear(cfg.control_channels * 64 * PATCH * PATCH, c)
        self.c2ws_hidden_states_layer1, self.c2ws_hidden_states_layer2 = nn.Linear(c, c), nn.Linear(c, c)
        self.text_embedding = nn.Sequential(nn.Linear(cfg.text_dim, c), nn.GELU(approximate="tanh"), nn.Linear(c, c))
        self.time_embedding = nn.Sequential(nn.Linear(cfg.freq_dim, c), nn.SiLU(), nn.Linear(c, c))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.num_layers))
        self.head = Head(cfg)

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].ffn[0].bias.dtype

    def time(self, timesteps: Tensor) -> Pair:
        """[K] -> e [K, C], e0 [K, 6, C] float32."""
        half = self.cfg.freq_dim // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
        angle = timesteps.double()[:, None] * frequency
        e = mlp(self.time_embedding, torch.cat([angle.cos(), angle.sin()], dim=-1).float())
        return e, self.time_projection(e).unflatten(-1, (6, -1))

    def text(self, rows: Tensor) -> list[Pair]:
        """Encoded prompt [B, n, text_dim], n <= text_len -> K, V [B, text_len, N, d] of every block's cross-attention.

        Rows are zero-padded *before* the MLP and attended without a mask, as the checkpoint was trained.
        """
        rows = F.pad(rows, (0, 0, 0, self.cfg.text_len - rows.shape[1]))
        context = mlp(self.text_embedding, rows)
        return [block.text(context) for block in self.blocks]

    def camera(self, control: Tensor) -> Iterator[Pair]:
        """Tokens of control channels [B, L, control * 64 * 4] -> scale and shift [B, L, C] of every block, each when it
        is asked for: all at once are as much as a slot keeps."""
        c0 = linear(self.patch_embedding_wancamctrl, control)
        c = c0 + linear(self.c2ws_hidden_states_layer2, F.silu(linear(self.c2ws_hidden_states_layer1, c0)))
        return (block.camera(c) for block in self.blocks)

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        e0: Tensor,
        camera: Sequence[ScaleShift],
        text: Sequence[Pair],
        turn: Pair,
        memory: Memory,
        num_outputs: int,
    ) -> Tensor:
        """Tokens x float32 [B, L, 36 * 4] (noisy, mask, condition), e [B, C], e0 [B, 6, C] -> flow [outputs, L, 64].

        The first `num_outputs` rows denoise; the rows after them are commits, which only leave K and V behind. Which
        tokens these are, all of a chunk's or some, only `turn`, `camera` and `memory` know.
        """
        weight = self.patch_embedding.weight.flatten(1)
        tokens = F.linear(x.to(weight.dtype), weight, self.patch_embedding.bias).float()
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            outputs = num_outputs if i == last else x.shape[0]
            tokens = block(tokens, e0, camera[i], text[i], turn, memory, i, outputs)
        return self.head(tokens, e[:num_outputs])


def init_weights(dit: CausalDiT) -> None:
    """Wan's initialisation for training: xavier linears, zero output head, and a camera branch that starts silent."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(dit.patch_embedding.weight.flatten(1))
    for layer in (*dit.text_embedding, *dit.time_embedding):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    for block in dit.blocks:
        for layer in (block.cam_scale_layer, block.cam_shift_layer):
            nn.init.normal_(layer.weight, std=0.1 / math.sqrt(dit.cfg.dim))
    nn.init.zeros_(dit.head.head.weight)

"""The causal video VAE of Wan 2.1: weights and arithmetic; the feature caches that make it stream are passed in.

Inside, a clip is [B, T, H, W, C] and a causal convolution is a 2-D one over three neighbouring frames stacked as
channels: one convolution backend at every batch size, so a player's pixels do not depend on who else is decoded, and
channels last is the layout that every backend runs fastest.
A cache holds the last two frames each causal convolution saw (the encoder's time convolutions: one). Caches of a
stream's first call are zeros, which is also the padding of a stream's beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world.nn.depth import DepthHead
from world.nn.rows import Sum, doubled, fused, stacked, unit_norm

LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip


ONE_SMALL_FRAME = 20480  # numbers in a lone frame up to which torch's CPU convolution takes its slow backend


@dataclass(frozen=True, slots=True)
class VAEConfig:
    dim: int = 96
    z_dim: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    encoder_blocks: int = 2  # residual blocks a level
    decoder_blocks: int = 3
    temporal_down: tuple[bool, ...] = (False, True, True)
    depth_width: int = 0  # of the head that tells the depth of a latent; 0: there is none
    mean: tuple[float, ...] = LATENT_MEAN
    std: tuple[float, ...] = LATENT_STD


class Caches:
    """The feature caches of one call, taken in the order the network visits them; `new` is what the next call needs.
    With `at` int64 [B] row i of the call has row at[i] of them, and they move on where they lie."""

    def __init__(self, old: Sequence[Tensor] | None, at: Tensor | None = None):
        self.old, self.at = old, at
        self.new: list[Tensor] = []

    def past(self, x: Tensor, frames: int) -> Tensor:
        """The last `frames` frames of the calls before [B, frames, H, W, C]."""
        if self.old is None:
            return x.new_zeros(x.shape[0], frames, *x.shape[2:])
        old = self.old[len(self.new)]
        return (old if self.at is None else old[self.at]).to(x.dtype)

    def keep(self, last: Tensor) -> None:
        """The next call's past."""
        if self.old is None or self.at is None:
            self.new.append(last.clone())  # not all that it is a part of
        else:
            old = self.old[len(self.new)]
            self.new.append(old.index_copy_(0, self.at, last.to(old.dtype)))

    def moved(self, x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """For a kernel that does both: what it reads as `past`, and where it is to `keep`."""
        if self.old is None or self.at is None:
            past = self.past(x, frames)
            self.new.append(torch.empty_like(past, memory_format=torch.contiguous_format))
        else:
            past = self.old[len(self.new)]
            self.new.append(past)
        return past, self.new[-1]

    def extend(self, x: Tensor, frames: int) -> Tensor:
        """[B, T, H, W, C] with the last `frames` frames of the calls before in front."""
        x = torch.cat([self.past(x, frames), x], dim=1)
        self.keep(x[:, -frames:])
        return x

    def skip(self, x: Tensor, frames: int, keep: bool) -> None:
        """The first call of a time convolution, which does not run: keep x's last frames, or nothing."""
        self.keep(x[:, -frames:] if keep else x.new_zeros(x.shape[0], frames, *x.shape[2:]))


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a 2-D layer on every frame of [B, T, H, W, C]. Contiguous: a layout picks the backend and so the bits. A lone
    small frame would get another one on a CPU, and runs as two."""
    frames = x.flatten(0, 1).contiguous().permute(0, 3, 1, 2)
    if frames.shape[0] == 1 and frames.numel() <= ONE_SMALL_FRAME and not frames.is_cuda:
        frames = torch.cat([frames, frames]).contiguous(memory_format=torch.channels_last)
    return layer(frames)[: x.shape[0] * x.shape[1]].permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def pointwise(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution with a kernel of one cell, as a linear over channels."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Sum:
    """A 2-D convolution of every frame of [B, T, H, W, C]. On a GPU the bias would be a pass of its own, and is left to
    what reads the sum."""
    now, later = (None, bias) if fused(x) else (bias, None)
    return Sum(per_frame(lambda frames: F.conv2d(frames, weight, now, padding=padding), x), later)


class CausalConv(nn.Conv3d):
    """Time kernel 3 (or 1), stride 1, causal in time, same-size in space."""

    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int, int] = 3):
        super().__init__(c_in, c_out, kernel)

    def forward(self, x: Sum, caches: Caches) -> Sum:  # type: ignore[override]
        t, h, _ = self.kernel_size
        if fused(x.x):
            return self.mix(self._stacked(None, x, caches, whole=False)[1], padding=h // 2)
        return self.window(caches.extend(x.made(), t - 1), stride=1, padding=h // 2)

    def after(self, norm: Norm, x: Sum, caches: Caches, whole: bool = False) -> tuple[Sum, Sum]:
        """Of the norm of x, for a kernel of 3; what has a kernel adds up, norms and stacks in one pass. And x itself,
        which if it is wanted whole has nothing left to be added."""
        if not fused(x.x):
            x = Sum(x.made())
            return x, self(Sum(norm(x.x)), caches)
        x, frames = self._stacked(norm.gamma.flatten(), x, caches, whole)
        return x, self.mix(frames, padding=1)

    def _stacked(self, gamma: Tensor | None, x: Sum, caches: Caches, whole: bool) -> tuple[Sum, Tensor]:
        return stacked(x, gamma, *caches.moved(x.x, self.kernel_size[0] - 1), caches.at, whole)

    def window(self, x: Tensor, stride: int, padding: int) -> Sum:
        """Every run of t frames, `stride` apart: [B, T, H, W, C] -> [B, (T - t) // stride + 1, H, W, O]."""
        t = self.kernel_size[0]
        span = x.shape[1] - t + 1
        return self.mix(torch.cat([x[:, k : k + span : stride] for k in range(t)], dim=-1), padding)

    def mix(self, stacked: Tensor, padding: int) -> Sum:
        """Runs of t frames stacked as channels [B, T, H, W, t C] -> [B, T, H, W, O]."""
        weight = self.weight.transpose(1, 2).flatten(1, 2)  # [O, t C, h, w]
        return convolved(stacked, weight, self.bias, padding)


class Norm(nn.Module):
    """x / ||x|| over channels, times sqrt(channels) and gamma; then SiLU, except before an attention."""

    def __init__(self, channels: int, dims: int, silu: bool = True):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dims))
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        return unit_norm(x, self.gamma.flatten(), self.silu)


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.residual = nn.Sequential(
            Norm(c_in, 3), nn.Identity(), CausalConv(c_in, c_out), Norm(c_out, 3), nn.Identity(), nn.Identity(),
            CausalConv(c_out, c_out),
        )  # fmt: skip
        self.shortcut = CausalConv(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Sum, caches: Caches) -> Sum:
        norm_a, _, conv_a, norm_b, _, _, conv_b = self.residual
        x, h = conv_a.after(norm_a, x, caches, whole=True)
        _, h = conv_b.after(norm_b, h, caches)
        made = Sum(h.x, h.bias, x.x if self.shortcut is None else pointwise(self.shortcut, x.x))
        return made if fused(h.x) else Sum(made.made())


class FrameAttention(nn.Module):
    """One head over the pixels of each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = Norm(channels, 2, silu=False)
        self.to_qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, summed: Sum, caches: Caches) -> Sum:
        x = summed.made()
        qkv = pointwise(self.to_qkv, self.norm(x)).flatten(2, 3)  # [B, T, H W, 3 C]
        seen = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return Sum(x + pointwise(self.proj, seen.unflatten(2, x.shape[2:4])))


class Down(nn.Module):
    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = CausalConv(channels, channels, (3, 1, 1)) if temporal else None

    def forward(self, summed: Sum, caches: Caches, first: bool) -> Sum:
        x = per_frame(self.resample, summed.made())
        if self.time_conv is None:
            return Sum(x)
        if first:
            caches.skip(x, 1, keep=True)
            return Sum(x)
        return self.time_conv.window(caches.extend(x, 1), stride=2, padding=0)


class Up(nn.Module):
    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = CausalConv(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Sum, caches: Caches, first: bool) -> Sum:
        if self.time_conv is not None and first:
            caches.skip(x.x, 2, keep=False)
        elif self.time_conv is not None:
            x = self.time_conv(x, caches)  # channels: even frame, odd frame
        conv = self.resample[1]
        if fused(x.x):
            return convolved(doubled(x, conv.in_channels), conv.weight, conv.bias, padding=1)
        frames = x.made().unflatten(-1, (-1, conv.in_channels)).movedim(-2, 2).flatten(1, 2)
        return Sum(per_frame(self.resample, frames))


def run(layers: nn.ModuleList | nn.Sequential, x: Sum, caches: Caches, first: bool) -> Sum:
    for layer in layers:
        x = layer(x, caches, first) if isinstance(layer, Down | Up) else layer(x, caches)
    return x


class Encoder(nn.Module):
    def __init__(self, cfg: VAEConfig):
        super().__init__()
        dims = [cfg.dim * m for m in (1, *cfg.multipliers)]
        self.conv1 = CausalConv(3, dims[0])
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise(dims)):
            layers += [Residual(c_in if j == 0 else c_out, c_out) for j in range(cfg.encoder_blocks)]
            if i < len(cfg.temporal_down):
                layers.append(Down(c_out, cfg.temporal_down[i]))
        self.downsamples = nn.Sequential(*layers)
        top = dims[-1]
        self.middle = nn.Sequential(Residual(top, top), FrameAttention(top), Residual(top, top))
        self.head = nn.Sequential(Norm(top, 3), nn.Identity(), CausalConv(top, 2 * cfg.z_dim))

    def forward(self, x: Tensor, caches: Caches, first: bool) -> Tensor:
        h = run(self.downsamples, self.conv1(Sum(x), caches), caches, first)
        norm, _, conv = self.head
        return conv.after(norm, run(self.middle, h, caches, first), caches)[1].made()


class Decoder(nn.Module):
    def __init__(self, cfg: VAEConfig):
        super().__init__()
        dims = [cfg.dim * m for m in (cfg.multipliers[-1], *cfg.multipliers[::-1])]
        top = dims[0]
        self.conv1 = CausalConv(cfg.z_dim, top)
        self.middle = nn.Sequential(Residual(top, top), FrameAttention(top), Residual(top, top))
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise(dims)):
            c_in = c_in // 2 if i > 0 else c_in  # the Up before it halved them
            layers += [Residual(c_in if j == 0 else c_out, c_out) for j in range(cfg.decoder_blocks)]
            if i < len(cfg.temporal_down):
                layers.append(Up(c_out, cfg.temporal_down[::-1][i]))
        self.upsamples = nn.Sequential(*layers)
        self.head = nn.Sequential(Norm(dims[-1], 3), nn.Identity(), CausalConv(dims[-1], 3))

    def forward(self, x: Tensor, caches: Caches, first: bool) -> Tensor:
        h = run(self.middle, self.conv1(Sum(x), caches), caches, first)
        norm, _, conv = self.head
        return conv.after(norm, run(self.upsamples, h, caches, first), caches)[1].made()


class VideoVAE(nn.Module):
    def __init__(self, cfg: VAEConfig):
        super().__init__()
        self.cfg = cfg
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        self.conv1, self.conv2 = CausalConv(2 * cfg.z_dim, 2 * cfg.z_dim, 1), CausalConv(cfg.z_dim, cfg.z_dim, 1)
        self.depth = DepthHead(cfg.z_dim, cfg.depth_width) if cfg.depth_width else None

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    def lay_out(self) -> None:
        """Put weights in the order of memory in which a GPU's convolutions read them, so that no call has to."""
        for module in self.modules():
            if isinstance(module, CausalConv):
                outward = module.weight.data.permute(0, 3, 4, 2, 1).contiguous()  # [O, h, w, t, C]
                module.weight.data = outward.permute(0, 4, 3, 1, 2)
            elif isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # Filled on the device: it would have to be waited for until it could take a list of the host's.
        mean, std = (
            torch.cat([torch.full((1, 1, 1, 1), value, device=like.device) for value in s])
            for s in (self.cfg.mean, self.cfg.std)
        )
        return mean, std

    def moments(self, video: Tensor, caches: Sequence[Tensor] | None, first: bool) -> tuple[Tensor, list[Tensor]]:
        """Video [B, 3, T, H, W] in -1..1 (1 frame on the first call, then multiples of 4) -> mean and log variance
        [B, 2 z, t, H/8, W/8] of the unnormalised latent, and the caches for the next call."""
        tape = Caches(caches)
        h = pointwise(self.conv1, self.encoder(video.to(self.dtype).movedim(1, -1), tape, first))
        return h.movedim(-1, 1).float(), tape.new

    def normalise(self, mu: Tensor) -> Tensor:
        mean, std = self._statistics(mu)
        return (mu - mean) / std

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, 1 + 4n, H, W] in -1..1 -> normalised latents float32 [B, z, 1 + n, H/8, W/8], by four frames."""
        latents: list[Tensor] = []
        caches: Sequence[Tensor] | None = None
        for piece in (video[:, :, :1], *video[:, :, 1:].split(4, dim=2)):
            if piece.shape[2] == 0:
                break
            moments, caches = self.moments(piece, caches, first=not latents)
            latents.append(self.normalise(moments[:, : self.cfg.z_dim]))
        return torch.cat(latents, dim=2)

    def decode(
        self, z: Tensor, caches: Sequence[Tensor] | None, first: bool, at: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Normalised latents [B, z, t, h, w] -> video float32 [B, 3, 4t (1 on the first call, t = 1), 8h, 8w],
        not clamped, and the caches for the next call. With `at` int64 [B] row i has row at[i] of them, and they move on
        where they lie."""
        mean, std = self._statistics(z)
        tape = Caches(caches, at)
        x = pointwise(self.conv2, (z * std + mean).to(self.dtype).movedim(1, -1))
        return self.decoder(x, tape, first).movedim(-1, 1).float(), tape.new


def init_weights(vae: VideoVAE) -> None:
    """For training: residual branches begin silent, and the encoder sure of what it says (a deviation of 0.1), so that
    the first steps are not spent on learning to speak through noise."""
    for module in vae.modules():
        last = module.residual[-1] if isinstance(module, Residual) else getattr(module, "proj", None)
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    nn.init.constant_(vae.conv1.bias.data[vae.cfg.z_dim :], 2 * math.log(0.1))

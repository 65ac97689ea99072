"""A world of random weights small enough to step thousands of times, and players with a fixed life of their own.

Not a test: what drives it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.tiny_checkpoints import random_like
from world.chunk import Geometry, Picture, Precision, Row, Start, WeightLayout
from world.config import WorldConfig
from world.model import DiffusionWorld
from world.motion import step_pose
from world.nn.dit import CausalDiT, DiTConfig, keeps_float32
from world.nn.fp8 import to_fp8
from world.nn.text import ByteTextConfig, ByteTextEncoder
from world.nn.vae import VAEConfig, VideoVAE
from world.ranks import ALONE, Ranks
from world.sampler import Schedule, from_sigmas
from world.sharding import lay_out
from world.slab import kv_dtype
from world.text import ByteText
from world.views import ViewRules

PROMPTS = ("a meadow at noon", "snow", "the sea, and a storm over it")
KEYS = "wasd"


def tiny_config(
    conditioning: str = "warp",
    chunk_frames: int = 1,
    window_frames: int = 4,
    sink_frames: int = 1,
    control_channels: int = 6,
    num_heads: int = 2,
    width: int = 48,
    height: int = 32,
    schedule: Schedule | None = None,
) -> WorldConfig:
    return WorldConfig(
        name="tiny",
        geometry=Geometry(width=width, height=height, fps=16, chunk_frames=chunk_frames),
        dit=DiTConfig(
            32,
            num_heads,
            2,
            64,
            text_len=31,
            text_dim=16,
            control_channels=control_channels,
            freq_dim=32,
            in_channels=56 if conditioning == "warp" else 36,
        ),
        vae=VAEConfig(dim=4, encoder_blocks=1, decoder_blocks=1, depth_width=8 if conditioning == "warp" else 0),
        schedule=schedule or from_sigmas((1.0, 0.5)),
        window_frames=window_frames,
        sink_frames=sink_frames,
        conditioning=conditioning,  # type: ignore[arg-type]
        views=ViewRules(capacity=3),  # soon full, so that views make room for others
    )


def random_world(
    cfg: WorldConfig,
    dtype: torch.dtype = torch.float32,
    num_slots: int = 4,
    seed: int = 0,
    ranks: Ranks = ALONE,
    layout: WeightLayout = "replicated",
    device: torch.device | None = None,
    precision: Precision = "native",
) -> DiffusionWorld:
    """A world of this configuration, in the dtypes it would be served in, that differs by seed alone."""
    generator = torch.Generator().manual_seed(seed)
    text = ByteTextConfig(cfg.dit.text_dim, dim=16, num_heads=2, num_layers=1, max_bytes=cfg.dit.text_len - 1)
    dit, vae, encoder = CausalDiT(cfg.dit), VideoVAE(cfg.vae), ByteTextEncoder(text)
    for module in (dit, vae, encoder):
        module.load_state_dict(random_like(module, generator))
        module.eval().requires_grad_(False)
    for key, parameter in dit.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if keeps_float32(key) else dtype)
    for module in (dit, vae, encoder):
        module.to(device)
    here = dit.head.modulation.device
    if precision != "native":
        to_fp8(dit, here)
    lay_out(dit, layout, ranks)
    kept = kv_dtype(cfg, precision, here)
    return DiffusionWorld(cfg, dit, vae.to(dtype), ByteText(encoder), (), num_slots, ranks=ranks, kv_dtype=kept)


@dataclass(frozen=True)
class Life:
    """Everything one player ever does, a pure function of who it is."""

    player: int
    chunk_frames: int
    num_chunks: int
    poses: NDArray[np.float32] = field(init=False)  # [1 + F, 4, 4], the pose before the first chunk repeated
    keys: NDArray[np.float32] = field(init=False)  # [F, 4]
    prompts: tuple[str | None, ...] = field(init=False)  # a new prompt for a chunk, or none

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.player)
        frames = self.chunk_frames * self.num_chunks
        pose, poses = np.eye(4), []
        for _ in range(frames):
            forward, right = rng.uniform(-0.3, 0.3, 2)
            pose = step_pose(pose, forward, right, rng.uniform(-20, 20), rng.uniform(-5, 5))
            poses.append(pose)
        said = [PROMPTS[rng.integers(3)] if n > 0 and rng.random() < 0.25 else None for n in range(self.num_chunks)]
        object.__setattr__(self, "poses", np.stack([poses[0], *poses]).astype(np.float32))
        object.__setattr__(self, "keys", rng.integers(0, 2, (frames, len(KEYS))).astype(np.float32))
        object.__setattr__(self, "prompts", tuple(said))

    def start(self, world: DiffusionWorld) -> Start:
        rng = np.random.default_rng([self.player, 1])
        size = world.geometry
        image = rng.integers(0, 256, (size.height, size.width, 3)).astype(np.uint8)
        intrinsics = np.array([size.width * 0.8, size.width * 0.8, size.width / 2, size.height / 2], np.float32)
        prompt = world.encode_prompt(PROMPTS[self.player % 3])
        return Start(1000 + self.player, prompt, world.prepare_image(image), intrinsics, 0.2)

    def row(self, world: DiffusionWorld, slot: int, chunk_index: int, step_index: int) -> Row:
        f, said = self.chunk_frames, self.prompts[chunk_index]
        at = chunk_index * f
        return Row(
            slot,
            chunk_index,
            step_index,
            self.poses[at : at + f + 1],
            self.keys[at : at + f],
            world.encode_prompt(said) if said is not None and step_index == 0 else None,
        )


Made = tuple[Tensor, NDArray[np.uint8]]  # a finished chunk: latents [16, f, h, w] and pictures [n, H * 3 // 2, W]


@dataclass
class Player:
    """A life being lived in a slot; `made` is what came of it, chunk after chunk."""

    life: Life
    slot: int
    chunk_index: int = 0
    step_index: int = 0
    made: list[Made] = field(default_factory=list)

    def row(self, world: DiffusionWorld) -> Row:
        return self.life.row(world, self.slot, self.chunk_index, self.step_index)

    def advanced(self, num_steps: int) -> None:
        done = self.step_index == num_steps
        self.chunk_index, self.step_index = self.chunk_index + done, 0 if done else self.step_index + 1

    @property
    def is_over(self) -> bool:
        return self.chunk_index == self.life.num_chunks


def tick(world: DiffusionWorld, players: Sequence[Player]) -> list[Picture]:
    """One forward for these players; what a last denoise step finished is kept with its player."""
    pictures = world.step([player.row(world) for player in players])
    by_slot = {picture.slot: picture for picture in pictures}
    for player in players:
        if player.step_index == world.num_steps - 1:
            picture = by_slot.pop(player.slot)
            assert picture.chunk_index == player.chunk_index
            player.made.append((world.slab.x[player.slot].clone(), picture.frames))
        player.advanced(world.num_steps)
    assert not by_slot, "a picture nobody's last step made"
    return pictures


def alone(world: DiffusionWorld, life: Life, slot: int) -> Iterator[Made]:
    """A life with nobody else in the world."""
    world.open(slot, life.start(world))
    player = Player(life, slot)
    while not player.is_over:
        tick(world, [player])
    world.close(slot)
    yield from player.made


def same_bits(a: Made, b: Made) -> bool:
    """NaN equals nothing, so it fails here too."""
    return torch.equal(a[0], b[0]) and np.array_equal(a[1], b[1])

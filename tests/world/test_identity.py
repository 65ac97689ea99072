"""Digests see every bit of what makes a stream, and nothing of where or beside whom it was made."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tests.world.tiny_world import Life, Player, random_world, tick, tiny_config
from world.chunk import DIGEST_BYTES
from world.identity import digest
from world.sampler import from_sigmas


def quiet(stage: str, share: float) -> None:
    pass


def test_every_bit_dtype_and_shape_counts():
    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    other = x.clone()
    other.view(torch.int32)[2, 3] ^= 1
    digests = {
        digest(t) for t in (x, other, x.reshape(4, 3), x.to(torch.bfloat16), x.T.contiguous(), -0.0 * x, 0.0 * x)
    }
    assert len(digests) == 7 and all(len(d) == DIGEST_BYTES for d in digests)
    assert digest(x.T) == digest(x.T.contiguous()), "strides are no content"


def test_what_holds_tensors_is_looked_into():
    @dataclass
    class Prepared:
        latents: Tensor
        place: np.ndarray

    x, y = torch.zeros(2), np.zeros(2)
    parts = [(x, y), (x,), [x, x], Prepared(x, y), Prepared(x, y + 1), {"x": x}, {"y": x}, "x", 1, None]
    assert len({digest(part) for part in parts}) == len(parts)


def test_an_identity_names_weights_configuration_and_arithmetic():
    world = random_world(tiny_config())
    identity = world.identify(quiet)
    assert identity == random_world(tiny_config()).identify(quiet) == world.identify(quiet)
    assert {"torch", "numpy", "device", "dtype", "threads"} == identity.arithmetic.keys()
    assert random_world(tiny_config(), seed=1).identify(quiet).weights != identity.weights
    assert random_world(tiny_config(), torch.bfloat16).identify(quiet).arithmetic["dtype"] == "bfloat16"
    sigma = float(np.nextafter(np.float32(0.5), np.float32(1)))
    moved = random_world(tiny_config(schedule=from_sigmas((1.0, sigma)))).identify(quiet)
    assert moved.weights == identity.weights and moved.config != identity.config
    renamed = random_world(replace(tiny_config(), name="other", max_rows=3)).identify(quiet)
    assert renamed.config == identity.config


def test_every_weight_is_in_the_identity():
    known = set()
    for module, key in [("dit", 0), ("dit", -1), ("vae", 0), ("text", -1)]:
        world = random_world(tiny_config())
        network = {"dit": world.denoiser.dit, "vae": world.vae, "text": world.text_encoder.network}[module]
        weight = list(network.parameters())[key].data.view(-1)
        weight[:1].view(torch.int32)[0] ^= 1
        known.add(world.identify(quiet).weights)
    assert len(known) == 4 and random_world(tiny_config()).identify(quiet).weights not in known


def test_a_picture_has_the_digest_of_its_latents_wherever_it_is_made():
    def play(slots: list[int]) -> list[list[tuple[bytes, bytes]]]:
        world = random_world(tiny_config(width=96, height=64))  # of six tokens a frame, two threads add in other orders
        players = [Player(Life(who, 1, 4), slot) for who, slot in enumerate(slots)]
        made = [[] for _ in players]
        for player in players:
            world.open(player.slot, player.life.start(world))
        while not players[0].is_over:
            for picture in tick(world, players):
                latents = world.slab.x[picture.slot]
                assert picture.digest == digest(latents)
                np.testing.assert_allclose(picture.means, latents.mean(dim=(1, 2, 3)), atol=1e-6)
                made[slots.index(picture.slot)].append((picture.digest, picture.means.tobytes()))
        return made

    (alone,), company = play([2]), play([3, 1, 4])
    assert company[0] == alone and len({each for life in company for each in life}) == 12


def test_what_is_prepared_has_a_digest():
    world = random_world(tiny_config())
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    other = image.copy()
    other[0, 0, 0] ^= 128
    snow = world.encode_prompt("snow").encoded
    digests = [world.digest(each) for each in (world.prepare_image(image), world.prepare_image(other), snow)]
    assert len(set(digests)) == 3 and digests[0] == world.digest(world.prepare_image(image))


def test_another_dtype_is_the_same_model_rounded():
    exact, rough = (random_world(tiny_config(), dtype).identify(quiet) for dtype in (torch.float32, torch.bfloat16))
    assert exact.weights != rough.weights and exact.rounded == rough.rounded
    assert random_world(tiny_config(), seed=1).identify(quiet).rounded != exact.rounded

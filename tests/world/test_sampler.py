"""The sampler: the published sigmas, both looks into a table with ties, and noise that anybody can redraw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from world.sampler import (
    V1_INDICES,
    V2_INDICES,
    at_timesteps,
    clean,
    from_sigmas,
    noise,
    published,
    renoise,
    sigma_table,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "schedule" / "cases.safetensors"

# shift, table indices, t, sigma in x0 (first entry with that t), sigma in re-noise (second one; the first is not used)
PUBLISHED = [
    (10, V1_INDICES, (999, 978, 947, 825), (0.999900, 0.978971, 0.947909, 0.825853), (0.978830, 0.947693, 0.825193)),
    (5, V1_INDICES, (999, 957, 899, 702), (0.999800, 0.957993, 0.899804, 0.702407), (0.957720, 0.899411, 0.702407)),
    (10, V2_INDICES, (999, 967, 908, 768), (0.999900, 0.967949, 0.908925, 0.768994), (0.967783, 0.908594, 0.768044)),
    (5, V2_INDICES, (999, 937, 833, 624), (0.999800, 0.937890, 0.833610, 0.624687), (0.937578, 0.833055, 0.624687)),
]

PINNED = [1.1001650094985962, -0.1307956874370575, 2.042775869369507, 0.9703955054283142]  # seed 7, chunk 3, step 1


def golden_shifts() -> dict[str, dict[str, list[float]]]:
    with safe_open(GOLDEN, "pt") as file:
        return json.loads(file.metadata()["meta"])


@pytest.mark.parametrize("shift", golden_shifts())
def test_table(shift):
    timesteps, sigmas = sigma_table(float(shift))
    with safe_open(GOLDEN, "pt") as file:
        np.testing.assert_array_equal(timesteps, file.get_tensor(f"shift{shift}.timesteps").numpy())
        np.testing.assert_allclose(sigmas, file.get_tensor(f"shift{shift}.sigmas").numpy(), rtol=2e-7, atol=0)
    chosen, schedule = golden_shifts()[shift], published(float(shift), V1_INDICES)
    assert schedule.timesteps == tuple(chosen["timesteps"])
    np.testing.assert_allclose(schedule.sigmas, chosen["sigmas"], rtol=2e-7)


@pytest.mark.parametrize("shift, indices, timesteps, sigmas, second", PUBLISHED)
def test_ties(shift, indices, timesteps, sigmas, second):
    schedule = published(shift, indices)
    assert schedule.num_steps == 4 and schedule.timesteps == timesteps
    np.testing.assert_allclose(schedule.sigmas, sigmas, atol=6e-7)
    np.testing.assert_allclose(schedule.renoise_sigmas[1:], second, atol=6e-7)
    assert at_timesteps(shift, timesteps) == schedule


def test_a_timestep_that_is_not_in_the_table_is_refused():
    with pytest.raises(ValueError, match="schedule"):
        at_timesteps(10.0, (999, 3))


def test_a_students_own_sigmas():
    schedule = from_sigmas((1.0, 0.25))
    assert schedule.timesteps == (1000.0, 250.0) and schedule.renoise_sigmas == schedule.sigmas == (1.0, 0.25)


def test_the_update_undoes_the_noise_it_was_given():
    """v = n - x0 at x = (1 - s) x0 + s n: the flow that leads back, whatever sigma a row has."""
    g = torch.Generator().manual_seed(0)
    x0, n = torch.randn(2, 3, 16, 1, 2, 2, generator=g)
    sigma = torch.tensor([0.999, 0.5, 0.1]).view(-1, 1, 1, 1, 1)
    x = renoise(x0, n, sigma)
    torch.testing.assert_close(clean(x, n - x0, sigma), x0, rtol=0, atol=1e-6)
    assert torch.equal(renoise(x0, n, torch.zeros(3, 1, 1, 1, 1)), x0), "the last step keeps its x0"


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**53 - 1),
    chunk=st.integers(0, 2**40),
    step=st.integers(0, 60),
    other=st.tuples(st.integers(0, 2**53 - 1), st.integers(0, 2**40), st.integers(0, 60)),
)
def test_noise_is_a_function_of_seed_chunk_and_step(seed, chunk, step, other):
    first = noise(seed, chunk, step, (16, 2, 2))
    between = noise(*other, (16, 2, 2))
    assert np.array_equal(noise(seed, chunk, step, (16, 2, 2)), first)
    assert first.dtype == np.float32 and np.isfinite(first).all()
    assert np.array_equal(between, first) == (other == (seed, chunk, step))


def test_noise_is_the_same_on_every_machine():
    np.testing.assert_array_equal(noise(7, 3, 1, (4,)), np.float32(PINNED))
    assert not np.array_equal(noise(7, 1, 3, (4,)), noise(7, 3, 1, (4,))), "chunk and step are not one number"


def test_noise_is_normal_and_neighbours_are_independent():
    draws = np.stack([noise(1, chunk, step, (4000,)) for chunk in range(3) for step in range(3)]).astype(np.float64)
    np.testing.assert_allclose(draws.mean(1), 0, atol=0.08)
    np.testing.assert_allclose(draws.std(1), 1, atol=0.06)
    correlation = np.corrcoef(draws) - np.eye(9)
    assert np.abs(correlation).max() < 0.08

"""The VAE streams and batches without changing a bit. That its pixels are the published ones is held by test_parity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tiny_checkpoints import random_like
from world.nn.vae import VAEConfig, VideoVAE

DTYPES = [torch.float32, torch.bfloat16]


def tiny_vae(dtype: torch.dtype = torch.float32, **sizes) -> VideoVAE:
    vae = VideoVAE(VAEConfig(**{"dim": 4, "encoder_blocks": 1, "decoder_blocks": 1} | sizes))
    vae.load_state_dict(random_like(vae, torch.Generator().manual_seed(0)))
    return vae.to(dtype).eval().requires_grad_(False)


def latents(rows: int, frames: int, h: int = 4, w: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, 16, frames, h, w, generator=torch.Generator().manual_seed(seed))


def decode(vae: VideoVAE, z: Tensor, pieces: list[int]) -> Tensor:
    """The first latent, then runs of these lengths."""
    out, caches = [], None
    for i, part in enumerate(z.split([1, *pieces], dim=2)):
        video, caches = vae.decode(part, caches, first=i == 0)
        out.append(video)
    return torch.cat(out, dim=2)


@pytest.fixture(autouse=True, params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    """Which backend a convolution takes depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_decodes_to_the_bits_of_one_go(dtype):
    vae, z = tiny_vae(dtype), latents(2, 6)
    whole = decode(vae, z, [5])
    assert whole.shape == (2, 3, 21, 32, 48) and whole.dtype == torch.float32
    for pieces in ([1] * 5, [2, 3], [3, 1, 1]):
        assert torch.equal(decode(vae, z, pieces), whole), pieces


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [{}, {"multipliers": (1, 2, 4, 8), "dim": 8}])
def test_a_row_decodes_to_the_bits_it_has_alone(dtype, sizes):
    """Up to 16 rows: where torch would change the backend of a convolution with the size of its batch."""
    vae, rows = tiny_vae(dtype, **sizes), 16
    z = latents(rows, 2)
    together = decode(vae, z, [1])
    for count in (1, 2, 5):
        assert torch.equal(decode(vae, z[:count], [1]), together[:count]), count
    for row in (3, 15):
        assert torch.equal(decode(vae, z[row : row + 1], [1]), together[row : row + 1]), row


@pytest.mark.parametrize("dtype", DTYPES)
def test_caches_move_on_where_they_lie(dtype):
    """In rows of something larger, of which others are left alone."""
    vae, z, at = tiny_vae(dtype), latents(2, 2), torch.tensor([3, 1])
    shapes = [cache.shape[1:] for cache in vae.decode(z[:, :, :1], None, first=True)[1]]
    kept = [torch.full((5, *shape), torch.nan, dtype=dtype) for shape in shapes]
    for cache in kept:
        cache[at] = 0
    caches = None
    for i in range(2):
        expected, caches = vae.decode(z[:, :, i : i + 1], caches, i == 0)
        video, same = vae.decode(z[:, :, i : i + 1], kept, i == 0, at)
        assert torch.equal(video, expected)
        for one, other, moved in zip(kept, same, caches, strict=True):
            assert one is other and torch.equal(one[at], moved) and one[[0, 2, 4]].isnan().all()


def test_weights_laid_out_are_the_same_and_what_convolutions_read():
    vae, other = tiny_vae(), tiny_vae()
    other.lay_out()
    for (name, one), again in zip(vae.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, again), name
    for module in other.modules():
        weight = module.weight if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d) else None
        read = weight.transpose(1, 2).flatten(1, 2) if isinstance(module, torch.nn.Conv3d) else weight
        if read is not None:
            assert read.data_ptr() == weight.data_ptr() and read.is_contiguous(memory_format=torch.channels_last)
    z = latents(1, 2)
    torch.testing.assert_close(decode(other, z, [1]), decode(vae, z, [1]), rtol=0, atol=1e-4)


def test_the_first_latent_is_one_frame_and_sees_no_past():
    vae, z = tiny_vae(), latents(1, 2)
    first, caches = vae.decode(z[:, :, :1], None, first=True)
    zeros = [torch.zeros_like(cache) for cache in caches]
    assert first.shape == (1, 3, 1, 32, 48)
    assert torch.equal(vae.decode(z[:, :, :1], zeros, first=True)[0], first), "no cache and a clean one are the same"
    assert vae.decode(z[:, :, 1:], caches, first=False)[0].shape == (1, 3, 4, 32, 48)


def test_pictures_depend_on_the_past_and_not_on_the_future():
    vae, z = tiny_vae(), latents(1, 4)
    video, other = decode(vae, z, [1, 1, 1]), z.clone()
    other[:, :, 2] += 1
    changed = decode(vae, other, [1, 1, 1])
    assert torch.equal(changed[:, :, :5], video[:, :, :5])
    assert not torch.equal(changed[:, :, 9:], video[:, :, 9:])


def test_encoding_is_causal_and_starts_with_one_frame():
    vae = tiny_vae()
    video = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = vae.encode(video)
    assert z.shape == (1, 16, 3, 4, 6) and z.dtype == torch.float32
    assert torch.equal(vae.encode(video[:, :, :5]), z[:, :, :2])
    assert torch.equal(vae.encode(video[:, :, :1]), z[:, :, :1])


def test_latents_are_normalised_by_the_statistics_of_the_weights():
    plain = tiny_vae(mean=(0.0,) * 16, std=(1.0,) * 16)
    shifted = tiny_vae(mean=(1.0,) * 16, std=(2.0,) * 16)
    video = torch.rand(1, 3, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    z = plain.encode(video)
    torch.testing.assert_close(shifted.encode(video), (z - 1) / 2)
    torch.testing.assert_close(
        shifted.decode((z - 1) / 2, None, True)[0], plain.decode(z, None, True)[0], atol=1e-4, rtol=0
    )

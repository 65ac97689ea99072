"""The published sizes give the published numbers of parameters and tensors, and the sizes a stream has."""

import pytest
import torch

from world.chunk import WorldError
from world.meadow.config import meadow_config
from world.nn.dit import CausalDiT
from world.nn.vae import VideoVAE
from world.published import PUBLISHED, published_config


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"), [("lingbot-14b", 18_544_332_864, 1421), ("lingbot-1.3b", 1_709_502_016, 1071)]
)
def test_the_dit_has_the_published_parameters(name, parameters, tensors):
    with torch.device("meta"):
        state = CausalDiT(published_config(name).dit).state_dict()
    assert (sum(t.numel() for t in state.values()), len(state)) == (parameters, tensors)


def test_the_vae_has_the_published_parameters():
    with torch.device("meta"):
        state = VideoVAE(published_config("lingbot-14b").vae).state_dict()
    assert len(state) == 194
    assert round(sum(t.numel() for t in state.values()) / 1e6, 1) == 126.9


def test_the_windows_and_chunks_are_the_releases():
    large, small = (published_config(name) for name in PUBLISHED)
    assert (large.geometry.chunk_tokens, large.window_frames, large.sink_frames) == (4680, 18, 3)
    assert (small.geometry.video_frames(1), small.window_frames, small.sink_frames) == (16, 18, 6)
    assert large.schedule.timesteps == (999, 978, 947, 825)
    assert small.schedule.timesteps == (999, 937, 833, 624)


def test_another_name_is_refused():
    with pytest.raises(WorldError, match=r"lingbot-7b is not one of the published models: lingbot-14b, lingbot-1\.3b"):
        published_config("lingbot-7b")


def test_a_published_picture_is_decoded_alone_and_the_built_in_ones_together():
    assert [published_config(name).decode_rows for name in PUBLISHED] == [1, 1]
    assert meadow_config().decode_rows == meadow_config().max_rows == 8

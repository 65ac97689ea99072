"""Every training stage runs on a CPU, resumes, and what it packs is a world that serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from world.chunk import Row, Start
from world.meadow.built_in import load_meadow
from world.meadow.train import main, packed, packed_statistics
from world.meadow.training import Run, averaged


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    def begin(seconds: float) -> tuple[nn.ModuleDict, Run]:
        torch.manual_seed(0)
        modules = nn.ModuleDict({"line": nn.Linear(2, 1)})
        return modules, Run(tmp_path / "run.pt", modules, seconds, lr=0.1, log=lambda line: None)

    modules, run = begin(60.0)
    assert run.share == 0
    for _ in range(3):
        run.update(modules["line"](torch.ones(1, 2)).square().mean())
    run.spent = 30.0
    run.save()
    again, resumed = begin(60.0)
    assert (resumed.step, resumed.share) == (3, 0.5)
    for old, new in zip(modules.parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new)
    run.update(modules["line"](torch.ones(1, 2)).square().mean())
    resumed.update(again["line"](torch.ones(1, 2)).square().mean())
    for name, kept in run.average.items():
        assert torch.equal(kept, resumed.average[name])
    resumed.save()
    saved = averaged(tmp_path / "run.pt", "line", torch.device("cpu"))
    assert saved.keys() == {"weight", "bias"} and torch.equal(saved["weight"], resumed.average["line.weight"])
    assert next(begin(30.0)[1].steps(), None) is None  # its time is spent


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_losses_fall(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["smoke", "--dir", str(tmp_path), "--device", "cpu"])
    assert capsys.readouterr().out.count("its loss came to") == 2


@pytest.mark.parametrize("own_from", ["1", "-1"])
def test_stages_make_a_world_that_serves(tmp_path: Path, own_from: str):
    common = ["--dir", str(tmp_path), "--device", "cpu", "--batch", "2"]
    few = [*common, "--shards", "1", "--shard-clips", "2", "--latent-frames", "5"]
    main(["clips", *few])
    main(["vae", *common, "--seconds", "0.001"])
    main(["latents", *few])
    main(["dit", *common, "--seconds", "0.001", "--own-from", own_from])
    main(["pack", *common])
    weights = tmp_path / "world.safetensors"
    world = load_meadow(1, torch.device("cpu"), torch.float32, lambda stage, share: None, weights)
    scene = world.scenes[0]
    image = world.prepare_image(scene.image)
    world.open(1, Start(7, world.encode_prompt(scene.prompt), image, scene.intrinsics, scene.scale))
    poses, keys = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1)), np.zeros((1, 4), np.float32)
    pictures = [p for step in range(world.num_steps) for p in world.step([Row(1, 0, step, poses, keys)])]
    assert [p.frames.shape for p in pictures] == [(1, 192, 224)]


@pytest.mark.parametrize("trained", ["nothing", "decoder", "vae"])
def test_a_run_goes_on_from_a_packed_world(tmp_path: Path, trained: str):
    """With the encoder held a latent keeps its meaning: then the statistics and all of the DiT stay. A new VAE takes
    the layers that read and write latents with it."""
    common = ["--device", "cpu", "--batch", "2"]
    few = [*common, "--shards", "1", "--shard-clips", "2", "--latent-frames", "5"]
    first, then = ["--dir", str(tmp_path / "first")], ["--dir", str(tmp_path / "then")]
    for stage in ("clips", "vae", "latents", "dit", "pack"):
        main([stage, *first, *(few if stage in ("clips", "latents") else [*common, "--seconds", "0.001"])])
    old = tmp_path / "first" / "world.safetensors"
    on = [*then, "--begin-from", str(old), *(["--hold-encoder"] if trained == "decoder" else [])]
    if trained != "nothing":
        main(["clips", *then, *few])
        main(["vae", *on, *common, "--seconds", "0.001"])
    main(["latents", *on, *few, "--first-shard", "1"])
    main(["dit", *on, *common, "--seconds", "-1"])  # no step: what it begins with
    main(["pack", *on, *common])
    new = tmp_path / "then" / "world.safetensors"
    assert (packed_statistics(old) == packed_statistics(new)) == (trained != "vae")
    same = {
        key for part in ("vae", "dit") for key, t in packed(old, part).items() if torch.equal(t, packed(new, part)[key])
    }
    assert ("encoder.conv1.weight" in same) == (trained != "vae")
    assert ("decoder.conv1.weight" in same) == (trained == "nothing")
    assert ("patch_embedding.weight" in same) == (trained != "vae") and "blocks.0.ffn.0.weight" in same

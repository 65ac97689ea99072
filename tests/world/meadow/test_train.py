"""Every training stage runs on a CPU, resumes, and what it packs is a world that serves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from world.chunk import Row, Start
from world.meadow import train
from world.meadow.built_in import load_meadow
from world.meadow.forcing import Batch
from world.meadow.train import INVENTED, Aged, main, packed, packed_statistics, worth
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
    assert capsys.readouterr().out.count("its loss came to") == 3


FEW = ["--device", "cpu", "--batch", "2", "--shards", "1", "--shard-clips", "2", "--latent-frames", "5"]


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has made its first world."""
    run = tmp_path_factory.mktemp("beginning")
    for stage in ("clips", "vae", "latents", "depth", "dit", "pack"):
        main([stage, "--dir", str(run), *FEW, "--seconds", "0.001"])
    return run


def test_stages_make_a_world_that_serves(beginning: Path):
    weights = beginning / "world.safetensors"
    world = load_meadow(1, torch.device("cpu"), torch.float32, lambda stage, share: None, weights)
    scene = world.scenes[0]
    image = world.prepare_image(scene.image)
    world.open(1, Start(7, world.encode_prompt(scene.prompt), image, scene.intrinsics, scene.scale))
    poses, keys = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1)), np.zeros((1, 4), np.float32)
    pictures = [p for step in range(world.num_steps) for p in world.step([Row(1, 0, step, poses, keys)])]
    assert [p.frames.shape for p in pictures] == [(1, 192, 224)]


@pytest.mark.parametrize("own_from", ["1", "-1"])
def test_a_student_learns_from_the_clip_or_from_its_own_past(beginning: Path, tmp_path: Path, own_from: str):
    for name in ("latents", "statistics.json", "vae.pt"):
        (tmp_path / name).symlink_to(beginning / name)
    for stage in ("dit", "pack"):
        main([stage, "--dir", str(tmp_path), *FEW, "--seconds", "0.001", "--own-from", own_from])
    learned = packed(tmp_path / "world.safetensors", "dit")
    assert learned.keys() == packed(beginning / "world.safetensors", "dit").keys()
    assert all(t.isfinite().all() for t in learned.values())


def test_what_is_invented_weighs_little():
    seen = torch.tensor([0.0, 0.5, 1.0]).expand(1, 2, 1, 3)
    frames = torch.zeros(1, 2, 16, 1, 3)
    nothing = torch.zeros(1)
    batch = Batch(frames, nothing, nothing, nothing, nothing, seen, nothing, torch.tensor([1]))
    fine, broad = worth(Aged(batch, frames, nothing, frames, frames))
    assert (fine == 1).all() and not broad.any()  # the history is true
    fine, broad = (t[0, :, 0].tolist() for t in worth(Aged(batch, frames, nothing, frames, frames, generation=1)))
    assert fine[0] == fine[1] == pytest.approx([INVENTED, (1 + INVENTED) / 2, 1.0])
    assert broad[0] == [0, 0, 0] and broad[1] == pytest.approx([1 - w for w in fine[1]])  # another prompt holds


def test_what_students_make_of_their_own_is_shown_to_the_critic(
    beginning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the second update the one clip's history is a generation old: from then on critic and student learn of it."""
    shutil.copytree(beginning / "latents", tmp_path / "latents")
    for name in ("statistics.json", "vae.pt"):
        shutil.copy(beginning / name, tmp_path)
    heeded: list[tuple[float, float]] = []

    def steps(run: Run) -> Iterator[float]:
        for _ in range(3):
            yield 0.5
            grads = [sum(p.grad.abs().sum().item() for p in run.modules[name].parameters() if p.grad is not None)
                     for name in ("critic", "dit")]  # fmt: skip
            heeded.append((grads[0], grads[1]))
        run.save()

    for name, value in (("POOL", 1), ("VISITS", 1), ("HEEDED_AFTER", 1)):
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(Run, "steps", steps)
    main(["dit", "--dir", str(tmp_path), *FEW, "--own-from", "0"])
    assert heeded[0][0] == 0 and all(critic > 0 for critic, _ in heeded[1:]) and all(dit > 0 for _, dit in heeded)


@pytest.mark.parametrize("trained", ["nothing", "depth", "decoder", "vae"])
def test_a_run_goes_on_from_a_packed_world(beginning: Path, tmp_path: Path, trained: str):
    """All of the DiT stays. With the encoder held a latent keeps its meaning, and so the statistics stay too."""
    old, new = beginning / "world.safetensors", tmp_path / "world.safetensors"
    on = ["--dir", str(tmp_path), "--begin-from", str(old), *FEW, "--seconds", "0.001"]
    on += ["--hold-encoder"] if trained == "decoder" else []
    if trained in ("decoder", "vae"):
        (tmp_path / "clips").symlink_to(beginning / "clips")
        main(["vae", *on])
    main(["latents", *on, "--first-shard", "1"])
    if trained == "depth":
        main(["depth", *on])
    main(["dit", *on, "--seconds", "-1"])  # no step: what it begins with
    main(["pack", *on])
    assert (packed_statistics(old) == packed_statistics(new)) == (trained != "vae")
    same = {key for part in ("vae", "dit") for key, t in packed(old, part).items() if t.equal(packed(new, part)[key])}
    assert ("encoder.conv1.weight" in same) == (trained != "vae")
    assert ("decoder.conv1.weight" in same) == (trained in ("nothing", "depth"))
    assert ("depth.layers.0.weight" in same) == (trained != "depth")
    assert set(packed(old, "dit")) <= same


def test_a_share_of_the_way_is_packed(beginning: Path, tmp_path: Path):
    """All of a run's networks, from where it began: half way, and none of it."""
    run, old = tmp_path / "run", tmp_path / "old.safetensors"
    shutil.copytree(beginning, run)
    with safe_open(beginning / "world.safetensors", "pt") as file:
        save_file({key: file.get_tensor(key) + 1 for key in file.keys()}, old, file.metadata())  # noqa: SIM118
    for share in ("0", "0.5"):
        main(["pack", "--dir", str(run), *FEW, "--begin-from", str(old), "--share", share])
        for part in ("dit", "text", "vae"):
            here, there = packed(beginning / "world.safetensors", part), packed(old, part)
            for key, t in packed(run / "world.safetensors", part).items():
                expected = there[key].lerp(here[key], float(share))
                torch.testing.assert_close(t, expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("option", [["--hold-encoder"], ["--share", "0.5"]])
def test_what_is_begun_from_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]):
    with pytest.raises(SystemExit):
        main(["vae", "--dir", str(tmp_path), *option])
    assert "--begin-from says which" in capsys.readouterr().err

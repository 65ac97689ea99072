"""Fidelity: what the serving code computes from published inputs is what the published code computed.

Thirty plausible misreadings land between 1.5e-5 and 1 relative, so the bounds are 1e-5 (2e-5 for camera rays).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from world import parity
from world.parity import main, run_case

GOLDEN = Path(__file__).parent.parent / "golden"
DITS = ("dit_cam_global", "dit_cam_window", "dit_act_global", "dit_v2_window")


def distance(got: Tensor, reference: Tensor) -> float:
    assert got.shape == reference.shape and got.dtype == torch.float32
    return ((got.double() - reference.double()).norm() / reference.double().norm()).item()


def without_references(case: Path, to: Path) -> Path:
    """A copy of a case that has its inputs only."""
    shutil.copytree(case, to)
    inputs = {"video", "first_frame_then_zeros", "z_random", "ids", "mask"}
    for path in [*to.glob("rollout*.safetensors"), *to.glob("cases.safetensors")]:
        with safe_open(path, "pt") as file:
            tensors, metadata = load_file(path), file.metadata()
        kept = {k: t for k, t in tensors.items() if k.startswith("in.") or k.endswith(".poses") or k in inputs}
        assert 0 < len(kept) < len(tensors)
        save_file(kept, path, metadata)
    return to


def edit(path: Path, change) -> None:
    """Rewrite a rollout: `change(tensors, meta)` alters both in place."""
    with safe_open(path, "pt") as file:
        tensors, meta = load_file(path), json.loads(file.metadata()["meta"])
    change(tensors, meta)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, {"meta": json.dumps(meta)})


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Every case computed once, by the command, from a folder without references."""

    def run(name: str) -> dict[str, Tensor]:
        if name not in done:
            folder = tmp_path_factory.mktemp("parity")
            case = without_references(GOLDEN / name, folder / "case")
            assert main([str(case), "--out", str(folder / "out.safetensors")]) == 0
            done[name] = load_file(folder / "out.safetensors")
        return done[name]

    done: dict[str, dict[str, Tensor]] = {}
    return run


@pytest.mark.parametrize("name", DITS)
def test_dit(name, computed):
    out, rollouts = computed(name), sorted((GOLDEN / name).glob("rollout*.safetensors"))
    for path in rollouts:
        names = [f"{path.stem}.", *([""] if len(rollouts) == 1 else [])]
        checked = 0
        for key, reference in load_file(path).items():
            if key.startswith(("out.flow.", "out.x0")):
                for prefix in names:
                    assert distance(out[prefix + key.removeprefix("out.")], reference) < 1e-5, key
                checked += 1
        assert checked >= 9


@pytest.mark.parametrize("name", DITS)
def test_every_flow_is_written(name, computed):
    out, rollouts = computed(name), sorted((GOLDEN / name).glob("rollout*.safetensors"))
    expected = set()
    for path in rollouts:
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["meta"])
        own = {"x0", *(f"flow.{n}.{i}" for n in range(meta["chunks"]) for i in range(len(meta["timesteps"])))}
        expected |= {f"{path.stem}.{key}" for key in own} | (own if len(rollouts) == 1 else set())
    assert out.keys() == expected


def test_vae(computed):
    reference = load_file(GOLDEN / "vae" / "cases.safetensors")
    assert computed("vae").keys() == {"latent", "decoded_unclamped", "first_frame_latent"}
    for key, got in computed("vae").items():
        assert distance(got, reference[key]) < 1e-5, key


def test_umt5(computed):
    reference = load_file(GOLDEN / "umt5" / "cases.safetensors")
    mask = reference["mask"].bool()
    assert computed("umt5").keys() == {"out"}
    assert distance(computed("umt5")["out"][mask], reference["out"][mask]) < 1e-5


def test_camera(computed):
    reference = load_file(GOLDEN / "camera" / "cases.safetensors")
    assert computed("camera").keys() == {key for key in reference if not key.endswith(".poses")}
    for key, got in computed("camera").items():
        bound = 2e-5 if "relative" in key or "plucker" in key else 1e-5
        assert distance(got, reference[key]) < bound, key


def test_players_of_one_slab_have_the_bits_they_have_alone(tmp_path, computed):
    """Rollouts of one folder share forwards, at different chunks and steps."""
    case = without_references(GOLDEN / "dit_cam_global", tmp_path / "case")
    (case / "rollout0.safetensors").unlink()
    alone = run_case(case)
    for key, got in alone.items():
        if key.startswith("rollout1."):
            assert torch.equal(got, computed("dit_cam_global")[key]), key


def test_forwards_mix_chunks_steps_and_commits(monkeypatch):
    mixed = set()
    step = parity.Denoiser.step

    def watched(self, slots, chunks, steps, num_outputs, fresh):
        commits = len(steps) - num_outputs
        mixed.add((len(slots), len(set(chunks.tolist())), len(set(steps.tolist())), commits))
        return step(self, slots, chunks, steps, num_outputs, fresh)

    monkeypatch.setattr(parity.Denoiser, "step", watched)
    run_case(GOLDEN / "dit_cam_global")
    assert (2, 1, 2, 1) in mixed and (2, 2, 2, 1) in mixed


def test_lengths_batches_and_prompts_of_their_own(tmp_path, computed):
    """A batch of two in one file, with a text each, beside a shorter rollout."""
    case = without_references(GOLDEN / "dit_cam_global", tmp_path / "case")
    first, second = (load_file(case / f"rollout{i}.safetensors") for i in (0, 1))

    def pair(tensors, meta):
        for key in ("in.noise", "in.y", "in.plucker"):
            tensors[key] = torch.cat([first[key], second[key]])
        tensors["in.renoise"] = torch.cat([first["in.renoise"], second["in.renoise"]], dim=2)
        tensors["in.text.1"] = second["in.text.0"]

    def shorten(tensors, meta):
        for key in ("in.noise", "in.y", "in.plucker"):
            tensors[key] = tensors[key][:, :, :3]
        tensors["in.renoise"] = tensors["in.renoise"][:1]
        meta["chunks"] = 1

    edit(case / "rollout0.safetensors", pair)
    edit(case / "rollout1.safetensors", shorten)
    out, reference = run_case(case), computed("dit_cam_global")
    for key in ("x0", "flow.0.0", "flow.2.3"):
        expected = torch.cat([reference[f"rollout0.{key}"], reference[f"rollout1.{key}"]])
        assert distance(out[f"rollout0.{key}"], expected) < 1e-6, key
    assert distance(out["rollout1.x0"], reference["rollout1.x0"][:, :, :3]) < 1e-6
    assert "rollout1.flow.1.0" not in out


def test_another_number_of_timesteps(tmp_path, computed):
    """The first step of the first chunk does not know how many follow; the rest must run."""
    case = without_references(GOLDEN / "dit_v2_window", tmp_path / "case")

    def two(tensors, meta):
        meta["timesteps"] = meta["timesteps"][:2]
        tensors["in.renoise"] = tensors["in.renoise"][:, :1]

    edit(case / "rollout0.safetensors", two)
    out = run_case(case)
    assert "flow.4.1" in out and "flow.0.2" not in out
    for key in ("flow.0.0", "flow.0.1"):
        assert torch.equal(out[key], computed("dit_v2_window")[key])


def test_one_timestep_needs_no_second_noise(tmp_path, computed):
    case = without_references(GOLDEN / "dit_act_global", tmp_path / "case")

    def one(tensors, meta):
        meta["timesteps"] = meta["timesteps"][:1]
        del tensors["in.renoise"]

    edit(case / "rollout0.safetensors", one)
    assert torch.equal(run_case(case)["flow.0.0"], computed("dit_act_global")["flow.0.0"])


def test_rollouts_of_different_chunk_lengths(tmp_path):
    """They cannot share a slab, and each still gets its own."""
    case = without_references(GOLDEN / "dit_cam_global", tmp_path / "case")

    def single(tensors, meta):
        meta["frames_per_chunk"] = 1
        tensors["in.renoise"] = tensors["in.renoise"].movedim(4, 1).flatten(0, 1).unsqueeze(4)

    edit(case / "rollout1.safetensors", single)
    expected = without_references(GOLDEN / "dit_cam_global", tmp_path / "alone")
    out = run_case(case)
    (expected / "rollout1.safetensors").unlink()
    assert distance(out["rollout0.x0"], run_case(expected)["x0"]) < 1e-6
    assert out["rollout1.flow.8.3"].shape == (1, 16, 1, 4, 8)


def break_nothing(case: Path) -> None:
    shutil.rmtree(case)
    case.mkdir()


def break_rollouts(case: Path) -> None:
    for path in case.glob("rollout*"):
        path.unlink()


def break_tensor(case: Path) -> None:
    edit(case / "rollout0.safetensors", lambda tensors, meta: tensors.pop("in.y"))


def break_shape(case: Path) -> None:
    edit(case / "rollout0.safetensors", lambda tensors, meta: tensors.update({"in.y": tensors["in.y"][:, :, 1:]}))


def break_meta(case: Path) -> None:
    edit(case / "rollout0.safetensors", lambda tensors, meta: meta.pop("shift"))


def break_schedule(case: Path) -> None:
    edit(case / "rollout0.safetensors", lambda tensors, meta: meta.update(timesteps=[999, 998, 3, 1]))


def break_file(case: Path) -> None:
    path = case / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def break_window(case: Path) -> None:
    config = json.loads((case / "config.json").read_text())
    (case / "config.json").write_text(json.dumps(config | {"local_attn_size": 4, "sink_size": 3}))


@pytest.mark.parametrize(
    "damage, says",
    [
        (break_nothing, "neither"),
        (break_rollouts, "no rollout"),
        (break_tensor, "in.y"),
        (break_shape, "in.y"),
        (break_meta, "shift"),
        (break_schedule, "timesteps"),
        (break_file, "cannot be computed"),
        (break_window, "window"),
    ],
)
def test_a_bad_case_ends_with_one_sentence(damage, says, tmp_path, capsys):
    case = tmp_path / "case"
    shutil.copytree(GOLDEN / "dit_cam_window", case)
    damage(case)
    assert main([str(case), "--out", str(tmp_path / "out.safetensors")]) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "out.safetensors").exists()

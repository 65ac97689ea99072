"""A checkpoint is loaded whole or refused with one sentence that names the file and the key."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.tiny_checkpoints import DIRECTORY, RELEASES, Tiny, dit_tensors, write, write_shards
from world.checkpoint import VAE_FILE, dit_config, find_dit, read_config, vae_config
from world.chunk import WorldError
from world.nn.dit import CausalDiT, keeps_float32
from world.nn.vae import VideoVAE
from world.weights import load_into, load_pickle, load_tensors_into, read_shapes

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent.parent / "golden"


def silent(stage: str, share: float) -> None:
    pass


def serving(name: str) -> torch.dtype:
    return torch.float32 if keeps_float32(name) else torch.bfloat16


def load_dit(checkpoint: Path, report: Callable[[str, float], None] = silent) -> CausalDiT:
    directory = find_dit(checkpoint).dit
    stored = read_shapes(directory)
    with torch.device("meta"):
        dit = CausalDiT(dit_config(stored, read_config(directory), directory))
    load_into(dit, stored, serving, CPU, report)
    return dit


def load_vae(checkpoint: Path) -> VideoVAE:
    path = checkpoint / VAE_FILE
    tensors = load_pickle(path)
    with torch.device("meta"):
        vae = VideoVAE(vae_config({key: tuple(tensor.shape) for key, tensor in tensors.items()}, path))
    load_tensors_into(vae, path, tensors, lambda name: torch.float32, CPU, silent)
    return vae


def refusal(load: Callable[[Path], object], checkpoint: Path) -> str:
    """The sentence a load ends with: one line, without the clutter of a traceback."""
    with pytest.raises(WorldError) as caught:
        load(checkpoint)
    sentence = str(caught.value)
    assert "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 500
    return sentence


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {release: write(root / release, Tiny(release, seed=i)) for i, release in enumerate(RELEASES)}


@pytest.fixture
def v1(published: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the v1 checkpoint, to damage."""
    return Path(shutil.copytree(published["v1"], tmp_path / "ckpt"))


def shards(checkpoint: Path) -> list[Path]:
    return sorted((checkpoint / "lingbot_world_fast").glob("*.safetensors"))


def index_of(checkpoint: Path) -> Path:
    return next((checkpoint / "lingbot_world_fast").glob("*.index.json"))


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("release", RELEASES)
def test_every_layout_loads_with_the_numbers_that_were_written(published, release):
    dit = load_dit(published[release])
    written: dict[str, torch.Tensor] = {}
    for file in sorted((published[release] / DIRECTORY[release]).glob("*.safetensors")):
        written |= load_file(file)
    held = dit.state_dict()
    assert held.keys() == written.keys()
    for key, tensor in held.items():
        assert tensor.dtype == serving(key) and torch.equal(tensor.float(), written[key].float()), key
    assert dit.cfg == Tiny(release).dit


@pytest.mark.parametrize(
    "release, shift, chunk, window, sink, first_steps",
    [("v1", 10.0, 3, 18, 3, 978), ("v2-14b", 10.0, 4, 18, 6, 967), ("v2-1.3b", 5.0, 4, 18, 6, 937)],
)
def test_the_place_of_the_files_tells_the_release(published, release, shift, chunk, window, sink, first_steps):
    layout = find_dit(published[release])
    assert layout.geometry.chunk_frames == chunk and (layout.geometry.width, layout.geometry.height) == (64, 32)
    assert (layout.shift, layout.window_frames, layout.sink_frames) == (shift, window, sink)
    assert layout.schedule.timesteps[1] == first_steps


def test_the_window_of_the_config_and_the_overrides(v1):
    edit_json(v1 / "lingbot_world_fast" / "config.json", lambda c: c.update(local_attn_size=9, sink_size=3))
    assert (find_dit(v1).window_frames, find_dit(v1).sink_frames) == (9, 3)
    edit_json(v1 / "manyworlds.json", lambda c: c.update(window_frames=7, chunk_frames=2, table_indices=[0, 500]))
    layout = find_dit(v1)
    assert (layout.window_frames, layout.sink_frames, layout.chunk_frames) == (7, 3, 2)
    assert layout.schedule.num_steps == 2


@pytest.mark.parametrize(
    "name, value",
    [
        ("width", 60),
        ("height", "32"),
        ("window_frames", 5),
        ("sink_frames", -1),
        ("chunk_frames", True),
        ("shift", None),
        ("table_indices", [500, 0]),
        ("table_indices", []),
        ("fps", 0),
        ("windw", 3),
    ],
)
def test_overrides_that_make_no_stream_are_refused(v1, name, value):
    edit_json(v1 / "manyworlds.json", lambda c: c.update({name: value}))
    sentence = refusal(find_dit, v1)
    assert "manyworlds.json" in sentence and name in sentence


def test_a_directory_without_a_dit_or_with_two(published, tmp_path):
    assert str(tmp_path) in refusal(find_dit, tmp_path)
    assert "nowhere" in refusal(find_dit, tmp_path / "nowhere")
    both = shutil.copytree(published["v1"], tmp_path / "both")
    shutil.copytree(published["v2-14b"] / "transformers", both / "transformers")
    assert "lingbot_world_fast" in refusal(find_dit, both) and "transformers" in refusal(find_dit, both)


def test_sizes_come_from_the_tensors_where_the_config_is_silent(v1):
    config = v1 / "lingbot_world_fast" / "config.json"
    config.write_text(json.dumps({"num_heads": 2, "text_len": 24, "unknown": {"nested": [1]}}))
    assert load_dit(v1).cfg == Tiny("v1").dit


def test_an_act_checkpoint_in_one_file_is_recognised(tmp_path):
    tiny = Tiny("v2-1.3b", control_channels=7)
    write_shards(tmp_path, "model", dit_tensors(tiny.dit, torch.Generator().manual_seed(0)), num_shards=1)
    assert load_dit(tmp_path).cfg == tiny.dit


def test_progress_rises_to_one(published):
    shares: list[float] = []
    load_dit(published["v1"], lambda stage, share: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 50


def test_what_is_loaded_does_not_hang_on_the_files(v1):
    dit = load_dit(v1)
    before = {key: tensor.clone() for key, tensor in dit.state_dict().items()}
    for shard in shards(v1):
        size = shard.stat().st_size
        with shard.open("r+b") as file:
            file.write(b"\xff" * size)
    assert all(torch.equal(tensor, before[key]) for key, tensor in dit.state_dict().items())


# Damage: (what is done to a checkpoint, what the sentence must name)


def a_missing_shard(ckpt: Path) -> list[str]:
    shards(ckpt)[1].unlink()
    first = next(
        k
        for k, v in json.loads(index_of(ckpt).read_text())["weight_map"].items()
        if v == "diffusion_pytorch_model-00002-of-00003.safetensors"
    )
    return ["00002-of-00003.safetensors", first]


def a_truncated_shard(ckpt: Path) -> list[str]:
    shard = shards(ckpt)[2]
    shard.write_bytes(shard.read_bytes()[:-100])
    return [shard.name]


def an_empty_shard(ckpt: Path) -> list[str]:
    shards(ckpt)[0].write_bytes(b"")
    return [shards(ckpt)[0].name]


def a_shard_of_something_else(ckpt: Path) -> list[str]:
    shards(ckpt)[0].write_bytes(b"<html>not found</html>" * 100)
    return [shards(ckpt)[0].name]


def rewrite(shard: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(shard)
    edit(tensors)
    save_file(tensors, shard)


def a_tensor_that_its_shard_lacks(ckpt: Path) -> list[str]:
    rewrite(shards(ckpt)[1], lambda t: t.pop("blocks.0.ffn.2.weight"))
    return [shards(ckpt)[1].name, "blocks.0.ffn.2.weight", "index.json"]


def a_tensor_that_nothing_has(ckpt: Path) -> list[str]:
    a_tensor_that_its_shard_lacks(ckpt)
    edit_json(index_of(ckpt), lambda c: c["weight_map"].pop("blocks.0.ffn.2.weight"))
    return ["lingbot_world_fast", "blocks.0.ffn.2.weight"]


def a_tensor_too_many(ckpt: Path) -> list[str]:
    rewrite(shards(ckpt)[2], lambda t: t.update({"blocks.1.extra.weight": torch.zeros(2)}))
    return [shards(ckpt)[2].name, "blocks.1.extra.weight"]


def a_block_too_many(ckpt: Path) -> list[str]:
    rewrite(shards(ckpt)[2], lambda t: t.update({"blocks.7.ffn.0.bias": torch.zeros(96)}))
    return [shards(ckpt)[2].name, "blocks.7.ffn.0.bias"]


def fewer_blocks_than_the_config_says(ckpt: Path) -> list[str]:
    edit_json(ckpt / "lingbot_world_fast" / "config.json", lambda c: c.update(num_layers=3))
    return ["lingbot_world_fast", "blocks.2", "num_layers is 3"]


def a_tensor_in_two_shards(ckpt: Path) -> list[str]:
    key, tensor = next(iter(load_file(shards(ckpt)[0]).items()))
    rewrite(shards(ckpt)[1], lambda t: t.update({key: tensor}))
    return [key, ".safetensors", "a second time"]


def a_tensor_in_another_shard_than_listed(ckpt: Path) -> list[str]:
    moved = load_file(shards(ckpt)[0])
    key = next(iter(moved))
    rewrite(shards(ckpt)[0], lambda t: t.pop(key))
    rewrite(shards(ckpt)[1], lambda t: t.update({key: moved[key]}))
    return [key, "00002-of-00003.safetensors", "index.json"]


def a_wrong_shape(ckpt: Path) -> list[str]:
    rewrite(shards(ckpt)[2], lambda t: t.update({"blocks.1.ffn.0.bias": torch.zeros(95)}))
    return [shards(ckpt)[2].name, "blocks.1.ffn.0.bias", "[95]", "[96]"]


def numbers_that_are_not(ckpt: Path) -> list[str]:
    rewrite(shards(ckpt)[2], lambda t: t.update({"blocks.1.ffn.0.bias": torch.full((96,), float("nan"))}))
    return [shards(ckpt)[2].name, "blocks.1.ffn.0.bias"]


def whole_numbers(ckpt: Path) -> list[str]:
    rewrite(shards(ckpt)[2], lambda t: t.update({"blocks.1.ffn.0.bias": torch.zeros(96, dtype=torch.int8)}))
    return [shards(ckpt)[2].name, "blocks.1.ffn.0.bias", "I8"]


def an_index_cut_short(ckpt: Path) -> list[str]:
    index_of(ckpt).write_text(index_of(ckpt).read_text()[:200])
    return ["index.json"]


def an_index_without_a_map(ckpt: Path) -> list[str]:
    edit_json(index_of(ckpt), lambda c: c.pop("weight_map"))
    return ["index.json", "weight_map"]


def an_index_out_of_the_directory(ckpt: Path) -> list[str]:
    edit_json(index_of(ckpt), lambda c: c["weight_map"].update({"head.head.bias": "../../etc/weights.safetensors"}))
    return ["index.json", "head.head.bias"]


def two_indices(ckpt: Path) -> list[str]:
    shutil.copy(index_of(ckpt), index_of(ckpt).with_name("model.safetensors.index.json"))
    return ["model.safetensors.index.json"]


def shards_without_an_index(ckpt: Path) -> list[str]:
    index_of(ckpt).unlink()
    return ["lingbot_world_fast", "index.json"]


def a_config_that_is_a_list(ckpt: Path) -> list[str]:
    (ckpt / "lingbot_world_fast" / "config.json").write_text("[1, 2]")
    return ["config.json"]


def a_config_with_a_wrong_size(ckpt: Path) -> list[str]:
    edit_json(ckpt / "lingbot_world_fast" / "config.json", lambda c: c.update(ffn_dim=128))
    return [".safetensors", "blocks.0.ffn.0."]


def a_config_with_a_size_that_is_none(ckpt: Path) -> list[str]:
    edit_json(ckpt / "lingbot_world_fast" / "config.json", lambda c: c.update(num_heads="2"))
    return ["config.json", "num_heads"]


def heads_that_do_not_divide(ckpt: Path) -> list[str]:
    edit_json(ckpt / "lingbot_world_fast" / "config.json", lambda c: c.update(num_heads=3))
    return ["config.json", "3 heads"]


def a_patch_of_another_size(ckpt: Path) -> list[str]:
    rewrite(shards(ckpt)[0], lambda t: t.update({"patch_embedding.weight": torch.zeros(64, 36, 2, 2, 2)}))
    return [shards(ckpt)[0].name, "patch_embedding.weight"]


def another_control(ckpt: Path) -> list[str]:
    rewrite(shards(ckpt)[0], lambda t: t.update({"patch_embedding_wancamctrl.weight": torch.zeros(64, 100)}))
    return [shards(ckpt)[0].name, "patch_embedding_wancamctrl.weight", "100"]


def no_camera_branch(ckpt: Path) -> list[str]:
    key = "patch_embedding_wancamctrl.weight"
    rewrite(shards(ckpt)[0], lambda t: t.pop(key))
    edit_json(index_of(ckpt), lambda c: c["weight_map"].pop(key))
    return ["lingbot_world_fast", key]


DAMAGE = [
    a_missing_shard, a_truncated_shard, an_empty_shard, a_shard_of_something_else, a_tensor_that_its_shard_lacks,
    a_tensor_that_nothing_has, a_tensor_too_many, a_block_too_many, fewer_blocks_than_the_config_says,
    a_tensor_in_two_shards, a_tensor_in_another_shard_than_listed, a_wrong_shape, numbers_that_are_not, whole_numbers,
    an_index_cut_short, an_index_without_a_map, an_index_out_of_the_directory, two_indices, shards_without_an_index,
    a_config_that_is_a_list, a_config_with_a_wrong_size, a_config_with_a_size_that_is_none, heads_that_do_not_divide,
    a_patch_of_another_size, another_control, no_camera_branch,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(v1, damage):
    parts = damage(v1)
    sentence = refusal(load_dit, v1)
    assert all(part in sentence for part in parts), sentence


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_flipped_byte_of_a_header_escapes_as_another_error(published, tmp_path_factory, data):
    source = published["v1"] / "lingbot_world_fast"
    target = tmp_path_factory.mktemp("flipped")
    shutil.copytree(source, target, dirs_exist_ok=True)
    shard = sorted(target.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    shard.write_bytes(content)
    try:
        load_dit(target)
    except WorldError as error:
        assert ".safetensors" in str(error) or str(target) in str(error)


def test_the_vae_has_the_published_keys(published):
    vae = load_vae(published["v1"])
    assert vae.cfg.dim == 4 and not any(p.is_meta or p.requires_grad for p in vae.parameters())
    golden = GOLDEN / "vae" / "Wan2.1_VAE.safetensors"
    if golden.exists():
        assert load_file(golden).keys() == load_pickle(published["v1"] / VAE_FILE).keys()


def vae_is_absent(path: Path) -> list[str]:
    path.unlink()
    return []


def vae_is_cut_short(path: Path) -> list[str]:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return []


def vae_is_a_page(path: Path) -> list[str]:
    path.write_text("<html>404</html>")
    return []


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


def vae_runs_code(path: Path) -> list[str]:
    path.write_bytes(pickle.dumps({"conv1.weight": Bomb()}))
    return []


def vae_runs_code_in_a_zip(path: Path) -> list[str]:
    torch.save({"conv1.weight": Bomb()}, path)
    return []


def vae_is_a_list(path: Path) -> list[str]:
    torch.save([torch.zeros(2)], path)
    return ["dictionary"]


def vae_is_a_training_state(path: Path) -> list[str]:
    torch.save({"model": {"conv1.weight": torch.zeros(2)}, "step": 3}, path)
    return ["model"]


def edit_vae(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_pickle(path).items()}
    edit(tensors)
    path.unlink()
    torch.save(tensors, path)


def vae_lacks_a_tensor(path: Path) -> list[str]:
    edit_vae(path, lambda t: t.pop("decoder.head.2.bias"))
    return ["decoder.head.2.bias"]


def vae_lacks_its_width(path: Path) -> list[str]:
    edit_vae(path, lambda t: t.pop("encoder.conv1.weight"))
    return ["encoder.conv1.weight"]


def vae_has_too_many(path: Path) -> list[str]:
    edit_vae(path, lambda t: t.update({"decoder.head.3.bias": torch.zeros(3)}))
    return ["decoder.head.3.bias"]


def vae_has_a_wrong_shape(path: Path) -> list[str]:
    edit_vae(path, lambda t: t.update({"decoder.head.2.bias": torch.zeros(4)}))
    return ["decoder.head.2.bias", "[4]", "[3]"]


def vae_has_other_latents(path: Path) -> list[str]:
    edit_vae(path, lambda t: t.update({"conv2.weight": torch.zeros(8, 8, 1, 1, 1)}))
    return ["conv2.weight"]


def vae_counts(path: Path) -> list[str]:
    edit_vae(path, lambda t: t.update({"decoder.head.2.bias": torch.zeros(3, dtype=torch.int64)}))
    return ["decoder.head.2.bias", "int64"]


VAE_DAMAGE = [
    vae_is_absent, vae_is_cut_short, vae_is_a_page, vae_runs_code, vae_runs_code_in_a_zip, vae_is_a_list,
    vae_is_a_training_state, vae_lacks_a_tensor, vae_lacks_its_width, vae_has_too_many, vae_has_a_wrong_shape,
    vae_has_other_latents, vae_counts,
]  # fmt: skip


@pytest.mark.parametrize("damage", VAE_DAMAGE)
def test_damage_to_a_pickle_is_named_and_nothing_in_it_runs(v1, damage, capfd):
    parts = damage(v1 / VAE_FILE)
    sentence = refusal(load_vae, v1)
    assert VAE_FILE in sentence and all(part in sentence for part in parts), sentence
    assert "executed" not in capfd.readouterr().out


def test_a_pickle_of_the_old_kind_loads(v1):
    path = v1 / VAE_FILE
    tensors = {key: tensor.clone() for key, tensor in load_pickle(path).items()}
    path.unlink()
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_vae(v1).conv2.weight, tensors["conv2.weight"])

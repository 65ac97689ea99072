"""Which world a name means, and on what it runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from world.checkpoint import TEXT_FILE, VAE_FILE, dit_config, find_dit, read_config, vae_config
from world.chunk import Precision, Report, WeightLayout, World, WorldError
from world.config import WorldConfig
from world.leader import RankedWorld
from world.meadow.built_in import load_meadow
from world.meadow.config import TEXT, meadow_config
from world.meadow.start_scenes import START_SCENES, draw_scene
from world.memory import MemoryPlan as MemoryPlan
from world.memory import available_bytes, plan
from world.memory import gb as gb
from world.model import DiffusionWorld
from world.nn.dit import CausalDiT, served_dtypes
from world.nn.fp8 import when_placed
from world.nn.text import ByteTextEncoder
from world.nn.vae import VideoVAE
from world.pattern import PatternWorld
from world.published import PUBLISHED, UMT5_XXL, published_config
from world.ranks import ALONE, Ranks
from world.sharding import lay_out
from world.slab import kv_dtype
from world.text import load_umt5, umt5_network, umt5_sizes
from world.weights import Stored, load_into, load_pickle, load_tensors_into, read_shapes

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
PUBLISHED_SCENES = 4  # start pictures drawn for a checkpoint, which comes with none


def serving_device(ranks: Ranks = ALONE) -> torch.device:
    """Of several ranks each one's own."""
    return ranks.device if ranks.size > 1 else torch.device("cuda" if torch.cuda.is_available() else "cpu")


def serving_dtype(device: torch.device, precision: Precision = "native") -> torch.dtype:
    """bfloat16 where the hardware multiplies it, float32 elsewhere: emulated, bfloat16 is 17 times slower. What stands
    between linears in FP8 is bfloat16 everywhere."""
    native = precision != "native" or device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def serving_threads(cores: int) -> int:
    """A power of two: with three threads a product of matrices in float32 rounds by how many rows share it."""
    return 1 << (cores.bit_length() - 1)


def load_world(
    path: str | None,
    num_slots: int,
    report: Report,
    num_ranks: int = 1,
    layout: WeightLayout = "replicated",
    precision: Precision = "native",
    on_gpus: bool = False,
) -> World:
    """None: the built-in world. `pattern`: test pictures. Else the directory of a published checkpoint. Several ranks
    are processes that compute it together on this machine's CPU, or on a GPU each. WorldError says in a sentence what
    is wrong."""
    if path == "pattern":
        if num_ranks > 1:
            raise WorldError("the pattern world has no weights that several ranks could compute with")
        if precision != "native":
            raise WorldError(f"the pattern world has no linears that could be kept in {precision}")
        return PatternWorld(num_slots=num_slots)
    torch.set_num_threads(serving_threads(max(1, torch.get_num_threads() // num_ranks)))
    load = partial(load_part, path, num_slots, layout, precision)
    return load(ALONE, report) if num_ranks == 1 else RankedWorld(load, num_ranks, report, on_gpus=on_gpus)


def load_part(
    path: str | None, num_slots: int, layout: WeightLayout, precision: Precision, ranks: Ranks, report: Report
) -> DiffusionWorld:
    """A rank's part of the built-in world or of a published one."""
    device = serving_device(ranks)
    dtype = serving_dtype(device, precision)
    if path is None or path == "meadow":
        return load_meadow(num_slots, device, dtype, report, ranks=ranks, layout=layout, precision=precision)
    return load_published(Path(path), num_slots, device, dtype, report, ranks, layout, precision)


def read_checkpoint(checkpoint: Path) -> tuple[WorldConfig, dict[str, Stored], dict[str, Tensor]]:
    """What a published checkpoint's files say it is, where the DiT's tensors lie, and the VAE's, mapped into memory."""
    found = find_dit(checkpoint)
    stored = read_shapes(found.dit)
    vae_path = checkpoint / VAE_FILE
    vae_tensors = load_pickle(vae_path)
    cfg = found.world_config(
        dit_config(stored, read_config(found.dit), found.dit),
        vae_config({key: tuple(t.shape) for key, t in vae_tensors.items()}, vae_path),
    )
    return cfg, stored, vae_tensors


def plan_world(
    path: str | None,
    num_slots: int,
    num_ranks: int = 1,
    layout: WeightLayout = "replicated",
    dtype_name: str | None = None,
    precision: Precision = "native",
    on_gpus: bool = False,
) -> MemoryPlan:
    """What `load_world` would take of each rank's memory. Also for PUBLISHED models by name, without their files.
    `dtype_name`: another than this machine would serve in."""
    device = _planned_device(num_ranks, on_gpus)
    dtype = serving_dtype(device, precision) if dtype_name is None else DTYPES[dtype_name]
    if precision != "native" and dtype != torch.bfloat16:
        raise WorldError(f"what stands between linears in FP8 is bfloat16, not {dtype_name}")
    text: nn.Module
    if path == "pattern":
        raise WorldError("the pattern world has no weights and no slab whose memory could be planned")
    if path is None or path == "meadow":
        cfg, text_dtype = meadow_config(), torch.float32
        with torch.device("meta"):
            text = ByteTextEncoder(TEXT)
    elif path in PUBLISHED:
        cfg, text, text_dtype = published_config(path), umt5_network(UMT5_XXL), dtype
    else:
        cfg, _, _ = read_checkpoint(Path(path))
        text_path, text_dtype = Path(path) / TEXT_FILE, dtype
        text = umt5_network(umt5_sizes(text_path, load_pickle(text_path)))
    return plan(cfg, dtype, text, text_dtype, num_slots, device, num_ranks, layout, precision)


def memory_there(num_ranks: int = 1, on_gpus: bool = False) -> int | None:
    """Bytes that each rank may plan with on this machine now, None where that cannot be known. Of several GPUs the
    first is asked, on which most is kept."""
    free = available_bytes(_planned_device(num_ranks, on_gpus))
    return None if free is None else free // (1 if on_gpus else num_ranks)


def _planned_device(num_ranks: int, on_gpus: bool) -> torch.device:
    return serving_device() if num_ranks == 1 or on_gpus else torch.device("cpu")


def check_gpus(num_gpus: int) -> None:
    """WorldError if there are not so many."""
    there = torch.cuda.device_count()
    if num_gpus > there:
        raise WorldError(
            f"--gpus {num_gpus}: torch finds {there or 'no'} GPU{'s' * (there != 1)} on this machine (--ranks "
            f"{max(2, num_gpus)} spreads a world over processes on the CPU)"
        )


def load_published(
    checkpoint: Path,
    num_slots: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
    ranks: Ranks = ALONE,
    layout: WeightLayout = "replicated",
    precision: Precision = "native",
) -> DiffusionWorld:
    cfg, stored, vae_tensors = read_checkpoint(checkpoint)
    with torch.device("meta"):
        dit, vae = CausalDiT(cfg.dit), VideoVAE(cfg.vae)
    load_into(dit, stored, served_dtypes(dtype), device, report, placed=when_placed(dit, precision, device))
    load_tensors_into(vae, checkpoint / VAE_FILE, vae_tensors, lambda key: dtype, device, report, "loading the VAE")
    text = load_umt5(checkpoint, cfg.dit.text_len, dtype, device, report) if ranks.index == 0 else None
    for module in (dit, vae):
        module.eval().requires_grad_(False)
    size = cfg.geometry.width, cfg.geometry.height
    scenes = [draw_scene(start, *size) for start in START_SCENES[:PUBLISHED_SCENES]]
    lay_out(dit, layout, ranks)
    kept = kv_dtype(cfg, precision, device)
    return DiffusionWorld(cfg, dit, vae, text, scenes, num_slots, ranks=ranks, kv_dtype=kept)

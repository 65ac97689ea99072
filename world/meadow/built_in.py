"""Loads the built-in world from the weights inside this package."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from world.chunk import Precision, Report, WeightLayout, WorldError
from world.meadow.config import TEXT, meadow_config
from world.meadow.start_scenes import START_SCENES, draw_place, draw_scene
from world.model import DiffusionWorld
from world.nn.dit import CausalDiT, served_dtypes
from world.nn.fp8 import when_placed
from world.nn.text import ByteTextEncoder
from world.nn.vae import VideoVAE
from world.ranks import ALONE, Ranks
from world.sharding import lay_out
from world.slab import kv_dtype
from world.text import ByteText
from world.weights import load_tensors_into, untold

WEIGHTS = Path(__file__).parent / "world.safetensors"


def load_meadow(
    num_slots: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
    weights: Path = WEIGHTS,
    ranks: Ranks = ALONE,
    layout: WeightLayout = "replicated",
    precision: Precision = "native",
) -> DiffusionWorld:
    try:
        with safe_open(weights, "pt") as file:
            statistics = json.loads(file.metadata()["statistics"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WorldError(f"{weights} cannot be read as the built-in world ({error})") from error
    cfg = meadow_config(tuple(statistics["mean"]), tuple(statistics["std"]))
    with torch.device("meta"):
        modules = {"dit": CausalDiT(cfg.dit), "vae": VideoVAE(cfg.vae), "text": ByteTextEncoder(TEXT)}
    dtypes = {
        "dit": served_dtypes(dtype),
        "vae": lambda key: dtype,
        "text": lambda key: torch.float32,
    }
    placed = {"dit": when_placed(modules["dit"], precision, device)}
    for name, module in modules.items():
        own = {key: t for key, t in tensors.items() if key.startswith(f"{name}.")}
        keys = {key: f"{name}.{key}" for key in module.state_dict()}
        told = placed.get(name, untold)
        load_tensors_into(module, weights, own, dtypes[name], device, report, names=keys, placed=told)
        module.eval().requires_grad_(False)
    size = {"width": cfg.geometry.width, "height": cfg.geometry.height}
    scenes = []
    for i, start in enumerate(START_SCENES if ranks.index == 0 else ()):
        report("drawing start pictures", i / len(START_SCENES))
        scenes.append(draw_scene(start, **size))
    lay_out(modules["dit"], layout, ranks)
    text = ByteText(modules["text"]) if ranks.index == 0 else None
    draw = partial(draw_place, **size)
    kept = kv_dtype(cfg, precision, device)
    return DiffusionWorld(cfg, modules["dit"], modules["vae"], text, scenes, num_slots, draw, ranks, kept)

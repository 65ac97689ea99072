"""Tiny random checkpoints in the layouts of the published ones: shards and index, `.pth` VAE and umT5, a tokenizer.

Not a test: what loads and serves them is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from world.nn.dit import CausalDiT, DiTConfig
from world.nn.vae import VAEConfig, VideoVAE

Release = Literal["v1", "v2-14b", "v2-1.3b"]
RELEASES: tuple[Release, ...] = ("v1", "v2-14b", "v2-1.3b")

DIRECTORY = {"v1": "lingbot_world_fast", "v2-14b": "transformers", "v2-1.3b": "."}
STEM = {"v1": "diffusion_pytorch_model", "v2-14b": "diffusion_pytorch_model", "v2-1.3b": "model"}
TEXT_DIM = 64
WORDS = ("a", "the", "snow", "forest", "castle", "at", "night", "in", "summer", "with", "red", "towers")


@dataclass(frozen=True, slots=True)
class Tiny:
    """What is written; sizes a checkpoint without config.json could not tell (heads, text_len) are the published."""

    release: Release
    control_channels: int = 6
    num_shards: int = 3
    dtype: torch.dtype = torch.bfloat16
    seed: int = 0

    @property
    def dit(self) -> DiTConfig:
        bare = self.release == "v2-1.3b"
        return DiTConfig(
            dim=128 if bare else 64,
            num_heads=1 if bare else 2,
            num_layers=2,
            ffn_dim=96,
            text_len=512 if bare else 24,
            text_dim=TEXT_DIM,
            control_channels=self.control_channels,
            freq_dim=64,
        )


def write(checkpoint: Path, tiny: Tiny, **overrides: Any) -> Path:
    """The whole directory; `overrides` go to manyworlds.json on top of a small picture."""
    generator = torch.Generator().manual_seed(tiny.seed)
    dit = checkpoint / DIRECTORY[tiny.release]
    dit.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.to(tiny.dtype) for key, tensor in dit_tensors(tiny.dit, generator).items()}
    write_shards(dit, STEM[tiny.release], tensors, tiny.num_shards)
    if tiny.release != "v2-1.3b":
        (dit / "config.json").write_text(json.dumps(published_config(tiny.dit)))
    torch.save(random_like(VideoVAE(VAEConfig(dim=4)), generator), checkpoint / "Wan2.1_VAE.pth")
    words = write_tokenizer(checkpoint / "google" / "umt5-xxl")
    torch.save(umt5_tensors(words + 12, generator), checkpoint / "models_t5_umt5-xxl-enc-bf16.pth")
    (checkpoint / "manyworlds.json").write_text(json.dumps({"width": 64, "height": 32} | overrides))
    return checkpoint


def dit_tensors(cfg: DiTConfig, generator: torch.Generator) -> dict[str, Tensor]:
    return random_like(CausalDiT(cfg), generator)


def random_like(module: torch.nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Matrices that keep the size of what passes through them, gains about 1, everything else small."""
    return {key: _random(key, tuple(old.shape), generator) for key, old in module.state_dict().items()}


def published_config(cfg: DiTConfig) -> dict[str, Any]:
    """config.json as published: it lacks text_dim, patch_size and the norms, and says things nobody needs."""
    return {
        "_class_name": "WanModelFast",
        "_diffusers_version": "0.33.0",
        "model_type": "i2v",
        "text_len": cfg.text_len,
        "in_dim": cfg.in_channels,
        "dim": cfg.dim,
        "ffn_dim": cfg.ffn_dim,
        "freq_dim": cfg.freq_dim,
        "out_dim": cfg.out_channels,
        "num_heads": cfg.num_heads,
        "num_layers": cfg.num_layers,
        "eps": cfg.eps,
    }


def write_shards(directory: Path, stem: str, tensors: dict[str, Tensor], num_shards: int) -> None:
    """As the published tools cut them: neighbours in one shard, and an index (none for a single file)."""
    if num_shards == 1:
        save_file(tensors, directory / f"{stem}.safetensors")
        return
    keys, weight_map = list(tensors), {}
    for i in range(num_shards):
        shard = f"{stem}-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        held = keys[i * len(keys) // num_shards : (i + 1) * len(keys) // num_shards]
        save_file({key: tensors[key].contiguous() for key in held}, directory / shard)
        weight_map |= dict.fromkeys(held, shard)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def umt5_tensors(vocabulary: int, generator: torch.Generator, layers: int = 2) -> dict[str, Tensor]:
    """umT5 under the published key names: 4 heads of 16, bfloat16."""
    d, ffn, heads, buckets = TEXT_DIM, 96, 4, 32
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (vocabulary, d), "norm.weight": (d,)}
    for i in range(layers):
        shapes |= {f"blocks.{i}.attn.{p}.weight": (d, d) for p in "qkvo"}
        shapes |= {f"blocks.{i}.ffn.{part}.weight": (ffn, d) for part in ("gate.0", "fc1")}
        shapes |= {
            f"blocks.{i}.ffn.fc2.weight": (d, ffn),
            f"blocks.{i}.pos_embedding.embedding.weight": (buckets, heads),
        }
        shapes |= {f"blocks.{i}.norm{n}.weight": (d,) for n in (1, 2)}
    return {key: _random(key, shape, generator).bfloat16() for key, shape in shapes.items()}


def write_tokenizer(directory: Path) -> int:
    """A fast tokenizer of T5's kind (unigram, single letters where no word fits, </s> last); its number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(chr(code), -12.0) for code in range(33, 127)]
    pieces += [("▁", -4.0), *((f"▁{word}", -6.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    return len(pieces)


def _random(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    value = torch.randn(shape, generator=generator)
    if key.endswith(".gamma") or ("norm" in key and key.endswith(".weight")):
        return 1 + 0.1 * value
    if len(shape) > 1 and not key.endswith("modulation"):
        return value / (value[0].numel() ** 0.5)
    return 0.1 * value

"""Prompts to the rows a DiT attends to: the built-in world's byte encoder, and umT5 for published checkpoints."""

from __future__ import annotations

import html
import importlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from world.checkpoint import TEXT_FILE, TOKENIZER_DIRECTORY
from world.chunk import Prompt, Report, WorldError
from world.nn.text import ByteTextEncoder, byte_ids
from world.weights import load_pickle, load_tensors_into

# Parameters of a block: transformers' name under encoder.block.{i}.layer. -> the published name under blocks.{i}.
UMT5_BLOCK = {
    **{f"0.SelfAttention.{p}.weight": f"attn.{p}.weight" for p in "qkvo"},
    "0.SelfAttention.relative_attention_bias.weight": "pos_embedding.embedding.weight",
    "0.layer_norm.weight": "norm1.weight",
    "1.DenseReluDense.wi_0.weight": "ffn.gate.0.weight",
    "1.DenseReluDense.wi_1.weight": "ffn.fc1.weight",
    "1.DenseReluDense.wo.weight": "ffn.fc2.weight",
    "1.layer_norm.weight": "norm2.weight",
}
UMT5_REST = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}


@dataclass(frozen=True, slots=True)
class UMT5Sizes:
    vocabulary: int
    dim: int
    head_dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    buckets: int  # of relative positions


class TextEncoder(Protocol):
    """One caller at a time."""

    network: nn.Module  # every weight of it

    @property
    def text_dim(self) -> int: ...

    def encode(self, text: str) -> Tensor:
        """A prompt -> rows [n, text_dim], n >= 1; ValueError where it cannot be encoded."""


class ByteText:
    """Any text can be encoded; what is over the length is cut."""

    def __init__(self, network: ByteTextEncoder):
        self.network = network

    @property
    def text_dim(self) -> int:
        return self.network.cfg.text_dim

    @torch.inference_mode()
    def encode(self, text: str) -> Tensor:
        ids = byte_ids(text, self.network.cfg.max_bytes)
        return self.network(torch.tensor([ids], device=self.network.position.device))[0]


class UMT5Text:
    """Published: cleaned, padded to text_len with a mask, trimmed to its length. Padding behind a mask changes nothing
    (positions are relative), so none is added, which makes a prompt of 20 tokens 25 times cheaper than 512."""

    def __init__(self, network: Any, tokenizer: Any, text_len: int):
        self.network, self.tokenizer, self.text_len = network, tokenizer, text_len

    @property
    def text_dim(self) -> int:
        return int(self.network.config.d_model)

    @torch.inference_mode()
    def encode(self, text: str) -> Tensor:
        ids = self.tokenizer(clean(text), truncation=True, max_length=self.text_len)["input_ids"]
        return umt5_rows(self.network, torch.tensor(ids))


def clean(text: str) -> str:
    """As the training prompts were: broken Unicode mended, HTML entities resolved (twice), white space once."""
    text = _extra("ftfy").fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


def umt5_rows(network: Any, ids: Tensor) -> Tensor:
    """Token ids int64 [n] -> [n, text_dim]."""
    device = network.shared.weight.device
    return network(input_ids=ids[None].to(device)).last_hidden_state[0]


def load_umt5(checkpoint: Path, text_len: int, dtype: torch.dtype, device: torch.device, report: Report) -> UMT5Text:
    """umT5 and its tokenizer from a published checkpoint's directory."""
    _extra("ftfy")
    path = checkpoint / TEXT_FILE
    tensors = load_pickle(path)
    network = umt5(path, tensors, dtype, device, report)
    tokenizer = load_tokenizer(checkpoint / TOKENIZER_DIRECTORY)
    rows = network.config.vocab_size
    if len(tokenizer) > rows:
        raise WorldError(
            f"{checkpoint / TOKENIZER_DIRECTORY} has {len(tokenizer)} tokens, and token_embedding.weight of {path} "
            f"only {rows} rows"
        )
    return UMT5Text(network, tokenizer, text_len)


def umt5(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, report: Report) -> Any:
    """transformers' umT5 encoder with the published tensors, its sizes taken from them."""
    sizes = umt5_sizes(path, tensors)
    network = umt5_network(sizes)
    names = dict(UMT5_REST)
    for i in range(sizes.num_layers):
        names |= {f"encoder.block.{i}.layer.{ours}": f"blocks.{i}.{theirs}" for ours, theirs in UMT5_BLOCK.items()}
    load_tensors_into(network, path, tensors, lambda name: dtype, device, report, "loading the text encoder", names)
    network.set_input_embeddings(network.shared)  # the encoder's own name for the same table
    return network.eval()


def umt5_sizes(path: Path, tensors: Mapping[str, Tensor]) -> UMT5Sizes:
    """Of the published tensors."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in tensors:
            raise WorldError(f"{path} lacks the tensor {key}")
        if tensors[key].dim() != 2 or 0 in tensors[key].shape:
            raise WorldError(f"{path}: {key} has shape {list(tensors[key].shape)}, not two axes")
        return tuple(tensors[key].shape)

    vocabulary, dim = shape("token_embedding.weight")
    buckets, heads = shape("blocks.0.pos_embedding.embedding.weight")
    inner = shape("blocks.0.attn.q.weight")[0]
    if inner % heads:
        raise WorldError(f"{path}: blocks.0.attn.q.weight has {inner} rows, which do not split into {heads} heads")
    return UMT5Sizes(
        vocabulary=vocabulary,
        dim=dim,
        head_dim=inner // heads,
        ffn_dim=shape("blocks.0.ffn.fc1.weight")[0],
        num_layers=len({key.split(".")[1] for key in tensors if key.startswith("blocks.")}),
        num_heads=heads,
        buckets=buckets,
    )


def umt5_network(sizes: UMT5Sizes) -> Any:
    """transformers' umT5 encoder on the meta device."""
    transformers = _extra("transformers")
    config = transformers.UMT5Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.dim,
        d_kv=sizes.head_dim,
        d_ff=sizes.ffn_dim,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        relative_attention_num_buckets=sizes.buckets,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    with torch.device("meta"):
        return transformers.UMT5EncoderModel(config)


def load_tokenizer(directory: Path) -> Any:
    if not directory.is_dir():
        raise WorldError(f"{directory}, the tokenizer of the text encoder, does not exist")
    try:
        return _extra("transformers").AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # damaged tokenizer files raise anything at all
        reason = " ".join(str(error).split())[:200]
        raise WorldError(f"{directory} cannot be read as a tokenizer ({type(error).__name__}: {reason})") from error


def umt5_case(directory: Path) -> dict[str, Tensor]:
    """What a golden umT5 folder holds, computed from its inputs; rows behind a prompt's mask are zero."""
    path = directory / "models_t5.safetensors"
    network = umt5(path, load_file(path), torch.float32, torch.device("cpu"), lambda stage, share: None)
    with safe_open(directory / "cases.safetensors", "pt") as case:
        ids, mask = case.get_tensor("ids"), case.get_tensor("mask")
    out = torch.zeros(*ids.shape, network.config.d_model)
    with torch.inference_mode():
        for row, (prompt, real) in enumerate(zip(ids, mask.bool(), strict=True)):
            out[row, real] = umt5_rows(network, prompt[real])
    return {"out": out}


class PromptCache:
    """The prompts encoded last, at most `capacity` of them; any thread."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.hits = self.misses = self.evictions = 0
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._prompts)

    def fetch(self, text: str, encode: Callable[[str], Prompt]) -> Prompt:
        """The prompt of this text, made by `encode` unless it is here. Nobody waits for another's text."""
        with self._lock:
            if (prompt := self._prompts.get(text)) is not None:
                self._prompts.move_to_end(text)
                self.hits += 1
                return prompt
            self.misses += 1
        fresh = encode(text)
        with self._lock:
            prompt = self._prompts.setdefault(text, fresh)  # another thread may have been first: all share one
            self._prompts.move_to_end(text)
            while len(self._prompts) > self.capacity:
                self._prompts.popitem(last=False)
                self.evictions += 1
        return prompt


def _extra(package: str) -> Any:
    """A package of the extra `text`, imported when a published checkpoint needs it: transformers takes seconds."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise WorldError(
            f"this world's prompts need the Python package {package}, which is not installed: "
            "pip install 'manyworlds[text]'"
        ) from error

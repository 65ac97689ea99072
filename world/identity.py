"""What makes the bits of a world: digests of its weights and latents, and on which arithmetic it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from world.chunk import DIGEST_BYTES, Report
from world.config import WorldConfig

NOT_IN_BITS = ("name", "max_rows")  # of a configuration


def digest(prepared: Any) -> bytes:
    """Every bit, dtype and shape of a tensor, or of the tensors in tuples, lists, mappings and dataclasses."""
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in _flat(prepared):
        total.update(part)
    return total.digest()


def weights_digests(modules: Mapping[str, nn.Module], report: Report) -> tuple[str, str]:
    """Every parameter by name: as it is served, and in bfloat16. A large world takes about a second a gigabyte."""
    served, rounded = hashlib.blake2b(digest_size=DIGEST_BYTES), hashlib.blake2b(digest_size=DIGEST_BYTES)
    for i, (module_name, module) in enumerate(modules.items()):
        report("reading the weights' identity", i / len(modules))
        for name, kept in sorted(module.state_dict().items()):
            tensor = _whole(kept)
            label, exact = f"{module_name}.{name}".encode(), digest(tensor)
            served.update(label + exact)
            rounded.update(label + (exact if tensor.dtype == torch.bfloat16 else digest(tensor.to(torch.bfloat16))))
    return served.hexdigest(), rounded.hexdigest()


def _whole(kept: Tensor) -> Tensor:
    """A weight; where ranks share it, from all of them, as bytes if it is smaller than their collectives know."""
    if not hasattr(kept, "full_tensor"):
        return kept
    return (kept if kept.itemsize > 1 else kept.view(torch.uint8)).full_tensor().view(kept.dtype)


def config_text(cfg: WorldConfig) -> str:
    """A configuration as JSON, without what no bit depends on."""
    fields = dataclasses.asdict(cfg)
    return json.dumps({key: value for key, value in fields.items() if key not in NOT_IN_BITS}, sort_keys=True)


def arithmetic(device: torch.device, dtype: str, num_ranks: int = 1) -> dict[str, str]:
    """What decides how sums are rounded. Several ranks are named, as each works on other shapes than one alone."""
    several = {"ranks": str(num_ranks)} if num_ranks > 1 else {}
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "device": _device_name(device),
        "dtype": dtype,
        "threads": str(torch.get_num_threads()),
    } | several


def _device_name(device: torch.device) -> str:
    """A GPU's says how many multiprocessors it has, over which its attention splits sums: a part of one has another."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    more = [
        name
        for name, has in (("bf16", torch.cpu._is_avx512_bf16_supported()), ("amx", torch.cpu._is_amx_tile_supported()))
        if has
    ]
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *more])


def _flat(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{list(value.shape)}".encode()
        yield value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{list(value.shape)}".encode() + value.tobytes()
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _flat(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield str(key).encode()
            yield from _flat(value[key])
    elif isinstance(value, tuple | list):
        yield str(len(value)).encode()
        for part in value:
            yield from _flat(part)
    else:
        yield repr(value).encode()

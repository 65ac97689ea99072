"""Published checkpoints on disk -> modules built on the meta device: every key used exactly once, or a WorldError whose
one sentence names file and key.

Shards are read tensor by tensor and cast on the way, so that loading needs the memory of the model and one tensor more.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from world.chunk import Report, WorldError

INDEX_SUFFIX = ".safetensors.index.json"
READABLE = {"F64", "F32", "F16", "BF16"}

DtypeOf = Callable[[str], torch.dtype]  # parameter name -> the dtype it is served in
Placed = Callable[[str], None]  # told the name of each parameter that was given its tensor


def untold(name: str) -> None:
    """`Placed`, where nobody needs to know."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies."""

    file: Path
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorldError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise WorldError(f"{path} does not hold a JSON object")
    return content


def read_shapes(directory: Path) -> dict[str, Stored]:
    """Every tensor of a directory with one single safetensors file or an index of shards. Reads headers only."""
    indices = sorted(directory.glob(f"*{INDEX_SUFFIX}"))
    files = sorted(directory.glob("*.safetensors"))
    if len(indices) > 1:
        raise WorldError(
            f"{directory} has {len(indices)} index files, {indices[0].name} and {indices[1].name} among them"
        )
    if not indices and len(files) != 1:
        raise WorldError(
            f"{directory} has {len(files)} safetensors files and no *{INDEX_SUFFIX} that tells how they combine"
        )
    if not indices:
        return {key: Stored(files[0], shape) for key, shape in _header(files[0]).items()}
    return _indexed(indices[0])


def load_into(
    module: nn.Module,
    stored: Mapping[str, Stored],
    dtype_of: DtypeOf,
    device: torch.device,
    report: Report,
    stage: str = "loading weights",
    placed: Placed = untold,
) -> None:
    """Fill a module on the meta device from safetensors files."""
    names = {name: name for name in module.state_dict()}
    fill(module, names, stored, _read(stored), dtype_of, device, report, stage, placed)


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file, mapped into memory. Nothing in it is executed."""
    if not path.is_file():
        raise WorldError(f"{path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle raises anything at all
        first_line = str(error).strip().split("\n")[0]
        raise WorldError(
            f"{path} is damaged or not a file of plain tensors ({type(error).__name__}: {first_line})"
        ) from error
    if not isinstance(content, dict) or not content:
        raise WorldError(f"{path} does not hold a dictionary of tensors")
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise WorldError(f"{path}: {key} is a {type(tensor).__name__}, not a tensor with a name")
    return content


def load_tensors_into(
    module: nn.Module,
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype_of: DtypeOf,
    device: torch.device,
    report: Report,
    stage: str = "loading weights",
    names: Mapping[str, str] | None = None,
    placed: Placed = untold,
) -> None:
    """Fill a module from `load_pickle(path)`. `names`: parameter -> key in the file, where they differ."""
    stored = {key: Stored(path, tuple(tensor.shape)) for key, tensor in tensors.items()}
    names = names or {name: name for name in module.state_dict()}
    fill(module, names, stored, iter(tensors.items()), dtype_of, device, report, stage, placed)


def fill(
    module: nn.Module,
    names: Mapping[str, str],
    stored: Mapping[str, Stored],
    tensors: Iterator[tuple[str, Tensor]],
    dtype_of: DtypeOf,
    device: torch.device,
    report: Report,
    stage: str,
    placed: Placed,
) -> None:
    """Give each parameter (names: parameter -> key) its tensor. All keys and shapes are checked before one is read."""
    expected = module.state_dict()
    parameters = {key: name for name, key in names.items()}
    where = next((place.file.parent for place in stored.values()), Path())
    for key in sorted(parameters.keys() - stored.keys()):
        raise WorldError(f"{_one_file(stored, where)} lacks the tensor {key}")
    for key in sorted(stored.keys() - parameters.keys()):
        raise WorldError(f"{stored[key].file} holds {key}, a tensor that the model does not have")
    for key, place in stored.items():
        wanted = tuple(expected[parameters[key]].shape)
        if place.shape != wanted:
            raise WorldError(f"{place.file}: {key} has shape {list(place.shape)}, the model's is {list(wanted)}")
    total = sum(math.prod(place.shape) for place in stored.values()) or 1
    done = 0
    for key, tensor in tensors:
        if not tensor.is_floating_point():
            raise WorldError(f"{stored[key].file}: {key} holds {tensor.dtype}, not floating-point numbers")
        name = parameters[key]
        own = tensor.to(device, dtype_of(name), copy=True)  # never the mapped file itself, which may change under us
        if not own.isfinite().all():
            raise WorldError(f"{stored[key].file}: {key} holds numbers that are not finite in {own.dtype}")
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, nn.Parameter(own, requires_grad=False))
        placed(name)
        done += own.numel()
        report(stage, done / total)


def _one_file(stored: Mapping[str, Stored], directory: Path) -> Path:
    """The file to blame: the only one, or the directory of several."""
    files = {place.file for place in stored.values()}
    return files.pop() if len(files) == 1 else directory


def _indexed(index: Path) -> dict[str, Stored]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise WorldError(f"{index} has no weight_map")
    for key, shard in listed.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WorldError(f"{index}: {key} is not given the name of a file beside it but {shard!r}")
    stored: dict[str, Stored] = {}
    for shard in sorted(set(listed.values())):
        file = index.parent / shard
        if not file.is_file():
            key = next(key for key, name in listed.items() if name == shard)
            raise WorldError(f"{file} does not exist, though {index.name} says that it holds {key}")
        for key, shape in _header(file).items():
            if key in stored:
                raise WorldError(f"{file} holds {key} a second time, after {stored[key].file.name}")
            if listed.get(key, shard) != shard:
                raise WorldError(f"{file} holds {key}, which {index.name} says is in {listed[key]}")
            stored[key] = Stored(file, shape)
    for key, shard in listed.items():
        if key not in stored:
            raise WorldError(f"{index.parent / shard} lacks the tensor {key} that {index.name} says it holds")
    return stored


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    shapes = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                part = tensors.get_slice(key)
                if part.get_dtype() not in READABLE:
                    raise WorldError(f"{file}: {key} is stored as {part.get_dtype()}, not as one of {sorted(READABLE)}")
                shapes[key] = tuple(part.get_shape())
    except (SafetensorError, OSError) as error:
        raise WorldError(f"{file} is cut short, damaged or not a safetensors file ({error})") from error
    return shapes


def _read(stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Tensors file by file."""
    keys: dict[Path, list[str]] = {}
    for key, place in stored.items():
        keys.setdefault(place.file, []).append(key)
    for file, held in keys.items():
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in held:
                    yield key, tensors.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise WorldError(f"{file} cannot be read ({error})") from error

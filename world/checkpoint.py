"""A published checkpoint's directory: which release it is, where its files are, and the sizes its tensors tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world.chunk import PATCH, SPATIAL_STRIDE, Geometry, WorldError
from world.config import WorldConfig
from world.nn.dit import DiTConfig
from world.nn.vae import LATENT_MEAN, VAEConfig
from world.sampler import V1_INDICES, V2_INDICES, Schedule, published
from world.weights import INDEX_SUFFIX, Stored, read_json

VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_DIRECTORY = "google/umt5-xxl"
OVERRIDES_FILE = "manyworlds.json"

CONTROL_FEATURES = 256  # a control channel of one token: 8x8 pixels folded, 2x2 cells patched
HEAD_DIM = 128  # of every published checkpoint; config.json says otherwise where it is not


@dataclass(frozen=True, slots=True)
class Layout:
    """What the place of a DiT's files says about the release, `manyworlds.json` beside them having the last word."""

    name: str
    dit: Path  # directory of the DiT's files
    shift: float
    table_indices: tuple[int, ...]  # of the denoise steps in the schedule's 1000
    chunk_frames: int
    window_frames: int
    sink_frames: int
    width: int = 832
    height: int = 480
    fps: int = 16

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.width, self.height, self.fps, self.chunk_frames)

    @property
    def schedule(self) -> Schedule:
        return published(self.shift, self.table_indices)

    def world_config(self, dit: DiTConfig, vae: VAEConfig) -> WorldConfig:
        """The release with a DiT and a VAE of these sizes."""
        return WorldConfig(
            name=self.name,
            geometry=self.geometry,
            dit=dit,
            vae=vae,
            schedule=self.schedule,
            window_frames=self.window_frames,
            sink_frames=self.sink_frames,
        )


def layouts(checkpoint: Path) -> list[Layout]:
    """Every release, as it was published, with the place of its DiT in a checkpoint's directory."""
    # v1 was published without a window, which a stream without end needs: 15 recent frames and a sink of 3.
    return [
        Layout("lingbot-world-fast-v1", checkpoint / "lingbot_world_fast", 10.0, V1_INDICES, 3, 18, 3),
        Layout("lingbot-world-fast-v2-14b", checkpoint / "transformers", 10.0, V2_INDICES, 4, 18, 6),
        Layout("lingbot-world-fast-v2-1.3b", checkpoint, 5.0, V2_INDICES, 4, 18, 6),
    ]


def find_dit(checkpoint: Path) -> Layout:
    """The release in a directory; local_attn_size and sink_size of its config.json, then its own file, override."""
    if not checkpoint.is_dir():
        raise WorldError(f"{checkpoint} is not a directory")
    found = [layout for layout in layouts(checkpoint) if _has_weights(layout.dit)]
    if not found:
        raise WorldError(
            f"{checkpoint} has no DiT: no safetensors files in lingbot_world_fast/, in transformers/ or beside them"
        )
    if len(found) > 1:
        raise WorldError(f"{checkpoint} has two DiTs, in {found[0].dit} and in {found[1].dit}")
    config = read_config(found[0].dit)
    windows = {"window_frames": config.get("local_attn_size"), "sink_frames": config.get("sink_size")}
    if type(windows["window_frames"]) is not int or windows["window_frames"] <= 0:  # -1: unbounded
        windows = {}
    overrides = _overrides(checkpoint / OVERRIDES_FILE)
    layout = dataclasses.replace(found[0], **{k: v for k, v in windows.items() if v is not None} | overrides)
    _check(layout, checkpoint / OVERRIDES_FILE if overrides else found[0].dit / "config.json")
    return layout


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a DiT, empty where there is none."""
    path = directory / "config.json"
    return read_json(path) if path.is_file() else {}


def dit_config(stored: Mapping[str, Stored], config: Mapping[str, Any], directory: Path) -> DiTConfig:
    """Sizes of a DiT: what its config.json says, else what its tensors say. Unknown keys are ignored."""
    source = directory / "config.json"

    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in stored:
            raise WorldError(f"{directory} lacks the tensor {key}, without which the model's sizes are unknown")
        if len(stored[key].shape) != axes or 0 in stored[key].shape:
            raise WorldError(f"{stored[key].file}: {key} has shape {list(stored[key].shape)}, not {axes} axes")
        return stored[key].shape

    def size(name: str, otherwise: int) -> int:
        value = config.get(name)
        if value is None:
            return otherwise
        if type(value) is not int or not 0 < value < 2**20:
            raise WorldError(f"{source}: {name} is {value!r}, not a positive whole number")
        return value

    dim, in_channels, *patch = shape("patch_embedding.weight", 5)
    dim = size("dim", dim)
    if patch != [1, PATCH, PATCH]:
        file = stored["patch_embedding.weight"].file
        raise WorldError(f"{file}: patch_embedding.weight cuts patches of {patch}, not {[1, PATCH, PATCH]}")
    for name, known in (("patch_size", patch), ("qk_norm", True), ("cross_attn_norm", True)):
        if config.get(name) not in (None, known):
            raise WorldError(f"{source}: {name} is {config[name]!r}, which is not supported (it must be {known!r})")
    heads = size("num_heads", max(dim // HEAD_DIM, 1))
    if dim % heads or dim // heads % 2:
        raise WorldError(f"{source}: a width of {dim} does not split into {heads} heads of an even size")
    eps = config.get("eps", 1e-6)
    if type(eps) is not float or not 0 < eps < 1:
        raise WorldError(f"{source}: eps is {eps!r}, not a small positive number")
    control = shape("patch_embedding_wancamctrl.weight", 2)[1]
    if control not in (6 * CONTROL_FEATURES, 7 * CONTROL_FEATURES):
        raise WorldError(
            f"{stored['patch_embedding_wancamctrl.weight'].file}: patch_embedding_wancamctrl.weight takes {control} "
            f"features, neither {6 * CONTROL_FEATURES} (cam) nor {7 * CONTROL_FEATURES} (act)"
        )
    held = len({key.split(".")[1] for key in stored if key.startswith("blocks.")})
    num_layers = size("num_layers", held)
    if num_layers > held:
        raise WorldError(
            f"{directory} lacks the tensors of blocks.{held}, though config.json says num_layers is {num_layers}"
        )
    return DiTConfig(
        dim=dim,
        num_heads=heads,
        num_layers=num_layers,
        ffn_dim=size("ffn_dim", shape("blocks.0.ffn.0.weight", 2)[0]),
        text_len=size("text_len", 512),
        text_dim=size("text_dim", shape("text_embedding.0.weight", 2)[1]),
        control_channels=control // CONTROL_FEATURES,
        freq_dim=size("freq_dim", shape("time_embedding.0.weight", 2)[1]),
        in_channels=size("in_dim", in_channels),
        out_channels=size("out_dim", shape("head.head.weight", 2)[0] // PATCH**2),
        eps=eps,
    )


def vae_config(shapes: Mapping[str, tuple[int, ...]], file: Path) -> VAEConfig:
    """The published VAE at the width its tensors tell."""
    sizes = []
    for key in ("encoder.conv1.weight", "conv2.weight"):
        if not shapes.get(key):
            raise WorldError(f"{file} lacks the tensor {key}, without which the model's sizes are unknown")
        sizes.append(shapes[key][0])
    dim, z_dim = sizes
    if z_dim != len(LATENT_MEAN):
        raise WorldError(f"{file}: conv2.weight has {z_dim} latent channels, not {len(LATENT_MEAN)}")
    return VAEConfig(dim=dim, z_dim=z_dim)


def _has_weights(directory: Path) -> bool:
    return any(directory.glob(f"*{INDEX_SUFFIX}")) or any(directory.glob("*.safetensors"))


def _overrides(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    overrides = read_json(path)
    allowed = {field.name for field in dataclasses.fields(Layout)} - {"dit"}
    for key in sorted(overrides.keys() - allowed):
        raise WorldError(f"{path}: {key} is not one of {', '.join(sorted(allowed))}")
    if isinstance(overrides.get("table_indices"), list):
        overrides["table_indices"] = tuple(overrides["table_indices"])
    return overrides


def _check(layout: Layout, source: Path) -> None:
    """Numbers that came from a file: the right types, a picture of whole tokens, and a window with room for a chunk."""

    def require(holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise WorldError(f"{source}: {name} is {getattr(layout, name)!r}, not {wanted}")

    for name in ("chunk_frames", "window_frames", "width", "height", "fps"):
        require(
            type(getattr(layout, name)) is int and 0 < getattr(layout, name) < 2**16, name, "a positive whole number"
        )
    require(type(layout.sink_frames) is int and layout.sink_frames >= 0, "sink_frames", "a whole number")
    require(isinstance(layout.name, str), "name", "a text")
    require(type(layout.shift) in (int, float) and 0 < layout.shift < 1e3, "shift", "a positive number")
    indices = layout.table_indices
    rising = isinstance(indices, tuple) and indices and all(type(i) is int and 0 <= i < 1000 for i in indices)
    require(bool(rising) and sorted(set(indices)) == list(indices), "table_indices", "a rising list of 0 to 999")
    unit = SPATIAL_STRIDE * PATCH
    require(layout.width % unit == 0, "width", f"a multiple of {unit}")
    require(layout.height % unit == 0, "height", f"a multiple of {unit}")
    room = layout.window_frames - layout.sink_frames
    require(room >= layout.chunk_frames, "window_frames", f"a sink of {layout.sink_frames} and a chunk or more")

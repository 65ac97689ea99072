"""A world that several processes compute together: what rank 0 is told, all of them do, each on its own part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from world.chunk import (
    DrawStart,
    Geometry,
    Identity,
    Picture,
    Prompt,
    Report,
    Row,
    Scene,
    SlotState,
    Start,
    WorldError,
)
from world.followers import LOAD, Done, Followers, Refused
from world.model import SLAB, DiffusionWorld, warm_up
from world.ranks import Ranks, is_peer_lost
from world.slab import store, unstore

Made = TypeVar("Made")
Load = Callable[[Ranks, Report], DiffusionWorld]  # on rank 0 with a text encoder

DEADLINE_S = 10.0  # a rank that lets the others wait for longer is lost


class RankedWorld:
    """`world.chunk.World` on rank 0. When a rank is gone, or has not answered in time, every verb raises one and the
    same WorldError, and all other ranks have been ended."""

    def __init__(
        self, load: Load, num_ranks: int, report: Report, deadline_s: float = DEADLINE_S, on_gpus: bool = False
    ):
        """on_gpus: each rank computes on the GPU of its index."""
        report("starting the other ranks", 0.0)
        self.followers = Followers(partial(load_part, load), num_ranks, deadline_s, on_gpus)
        try:
            parts = self._together(LOAD, own=lambda: load(self.followers.ranks, report), patient=True)
            self.part: DiffusionWorld = parts[0]
            self.followers.leaving.callback(self.part.graphs.captured.clear)
        except BaseException:
            self.followers.end()
            raise

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def geometry(self) -> Geometry:
        return self.part.geometry

    @property
    def num_slots(self) -> int:
        return self.part.num_slots

    @property
    def num_steps(self) -> int:
        return self.part.num_steps

    @property
    def max_rows(self) -> int:
        return self.part.max_rows

    @property
    def state_bytes(self) -> int:
        return self.part.state_bytes

    @property
    def scenes(self) -> Sequence[Scene]:
        return self.part.scenes

    @property
    def draw_start(self) -> DrawStart | None:
        return self.part.draw_start

    @property
    def dtype(self) -> str:
        return self.part.dtype

    def identify(self, report: Report) -> Identity:
        own: Identity = self._together("identify", own=lambda: self.part.identify(report), patient=True)[0]
        return own

    def prewarm(self, report: Report) -> None:
        warm_up(self, report)

    def check(self) -> None:
        self.followers.check()

    def encode_prompt(self, text: str) -> Prompt:
        return self.part.encode_prompt(text)

    def prepare_image(self, image: NDArray[np.uint8]) -> Any:
        return self.part.prepare_image(image)

    def digest(self, prepared: Any) -> bytes:
        return self.part.digest(prepared)

    def open(self, slot: int, start: Start) -> None:
        told = replace(start, prompt=_packed(start.prompt), image=store(start.image))
        self._together("open", slot, told, own=lambda: self.part.open(slot, start))

    def close(self, slot: int) -> None:
        self._together("close", slot, own=lambda: self.part.close(slot))

    def export(self, slot: int) -> SlotState:
        own, *others = self._together("export", slot, own=lambda: self.part.export(slot))
        return SlotState({name: t for state in (*others, own) for name, t in state.tensors.items()}, own.facts)

    def restore(self, slot: int, state: SlotState) -> None:
        self._together("fits", slot, state, own=lambda: self.part.fits(slot, state))
        self._together("restore", slot, state, own=lambda: self.part.restore(slot, state))

    def step(self, rows: Sequence[Row]) -> list[Picture]:
        told = [row if row.prompt is None else replace(row, prompt=_packed(row.prompt)) for row in rows]
        pictures = [p for made in self._together("step", told, own=lambda: self.part.step(rows)) for p in made]
        order = {row.slot: at for at, row in enumerate(rows)}
        return sorted(pictures, key=lambda picture: order[picture.slot])

    def end(self) -> None:
        """All other ranks end. Also when nobody has this world any more."""
        self.followers.end()

    def _together(self, verb: str, *arguments: Any, own: Callable[[], Made], patient: bool = False) -> list[Any]:
        """What every rank makes of a verb, by rank: `own` is this one's part. What is refused, all refuse alike."""
        self.followers.tell(verb, *arguments)
        refusal: Exception | None = None
        made: Any = None
        try:
            with self.followers.watched(patient):
                made = own()
        except (ValueError, KeyError) as fault:
            refusal = fault
        except WorldError:  # of loading: the others say the same
            self.followers.end()
            raise
        except Exception as fault:
            raise self.followers.blame() if is_peer_lost(fault) else self.followers.fail(fault) from None
        answers = self.followers.answers(None if patient else self.followers.deadline_s)
        if refusal is not None:
            raise refusal
        for answer in answers:
            if isinstance(answer, Refused):
                raise ValueError(answer.why)
        return [made, *(answer.made for answer in answers if isinstance(answer, Done))]


class Part:
    """A follower's part of a world, under the verbs and with the arguments that the leader sends."""

    def __init__(self, world: DiffusionWorld):
        self.world = world

    def identify(self) -> None:
        """Its weights are the leader's; where they are divided, it helps to put them together."""
        self.world.identify(lambda stage, share: None)

    def open(self, slot: int, start: Start) -> None:
        told = replace(start, prompt=self._unpacked(start.prompt), image=unstore(start.image).to(self.world.device))
        self.world.open(slot, told)

    def close(self, slot: int) -> None:
        self.world.close(slot)

    def export(self, slot: int) -> SlotState:
        """What the leader has not."""
        state = self.world.export(slot)
        return SlotState({name: t for name, t in state.tensors.items() if _is_apart(name)}, {})

    def fits(self, slot: int, state: SlotState) -> None:
        self.world.fits(slot, state)

    def restore(self, slot: int, state: SlotState) -> None:
        self.world.restore(slot, state)

    def step(self, rows: Sequence[Row]) -> list[Picture]:
        return self.world.step(
            [row if row.prompt is None else replace(row, prompt=self._unpacked(row.prompt)) for row in rows]
        )

    def _unpacked(self, prompt: Prompt) -> Prompt:
        return replace(prompt, encoded=unstore(prompt.encoded).to(self.world.device))


def load_part(load: Load, ranks: Ranks, report: Report) -> Part:
    return Part(load(ranks, report))


def _is_apart(name: str) -> bool:
    """A tensor of a state that a follower has and the leader has not."""
    return "@" in name or name.startswith(f"{SLAB}decoder.")


def _packed(prompt: Prompt) -> Prompt:
    return replace(prompt, encoded=store(prompt.encoded))

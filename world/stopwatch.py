"""How long the stages of a world's steps take, measured from outside: the served code has no hooks and no timers.

`watching` puts wrappers around a world's methods for a while. On a GPU they record CUDA events, which the host does not
wait for: the stream of work is the one that players get, with a few marks in it, and is waited for once, when the times
are read. On a CPU they read the clock that they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from world.chunk import Picture, Row
from world.model import DiffusionWorld

Clock = Callable[[], float]

COPY = "copy"  # decoded pictures as I420, and their way to the host


@dataclass(slots=True)
class _Span:
    stage: str
    parent: int | None  # index of the span around it
    began: Any  # a CUDA event, or seconds
    ended: Any = None


@dataclass(slots=True)
class _Step:
    """One call of a world's step."""

    spans: list[_Span] = field(default_factory=list)
    open: list[int] = field(default_factory=list)
    host_s: float = 0.0


class Stopwatch:
    def __init__(self, device: torch.device, clock: Clock):
        self.device, self.clock = device, clock
        self._steps: list[_Step] = []

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, stage: str) -> Iterator[None]:
        """A stage within a step; what is nested in it counts for itself only."""
        step = self._steps[-1]
        index = len(step.spans)
        step.spans.append(_Span(stage, step.open[-1] if step.open else None, self.mark()))
        step.open.append(index)
        yield
        step.open.pop()
        step.spans[index].ended = self.mark()

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        self._steps.append(_Step())
        began_s = self.clock()
        with self.span(label):
            yield
        self._steps[-1].host_s = self.clock() - began_s

    def read(self) -> list[dict[str, float]]:
        """Milliseconds by stage of each step since the last reading. Waits for the device."""
        self.wait()
        steps, self._steps = self._steps, []
        return [self._stages(step) for step in steps]

    @property
    def host_s(self) -> float:
        """That the last step kept its caller waiting."""
        return self._steps[-1].host_s

    def _stages(self, step: _Step) -> dict[str, float]:
        ms = [self.between(span.began, span.ended) for span in step.spans]
        own = list(ms)
        for span, whole in zip(step.spans, ms, strict=True):
            if span.parent is not None:
                own[span.parent] -= whole
        stages: dict[str, float] = {}
        for span, alone in zip(step.spans, own, strict=True):
            stages[span.stage] = stages.get(span.stage, 0.0) + alone
        return stages

    def between(self, began: Any, ended: Any) -> float:
        """Milliseconds between two marks; the device must have passed both."""
        if self.device.type != "cuda":
            return 1000 * float(ended - began)
        return float(began.elapsed_time(ended))


@contextmanager
def watching(world: DiffusionWorld, watch: Stopwatch) -> Iterator[None]:
    """While inside, the world's steps are taken apart into stages: `begin` (camera, condition and first noise of new
    chunks), `vae` (decoding to I420), `copy` (the way to the host), `digest` (of finished latents), and `step i` or
    `commit` with what is left of them (one forward; `mixed` where rows are at different steps)."""
    step = world.step

    def watched_step(rows: Sequence[Row]) -> list[Picture]:
        with watch.step(label_of(rows, world.num_steps)):
            return step(rows)

    seams: list[tuple[Any, str, Callable[..., Any]]] = [(world, "step", watched_step)]
    for owner, name, stage in (
        (world, "_begin", "begin"),
        (world, "_decode", COPY),
        (world, "_decode_frame", "vae"),
        (world, "_picture", "digest"),
    ):
        seams.append((owner, name, _timed(watch, getattr(owner, name), stage)))
    for owner, name, wrapper in seams:
        setattr(owner, name, wrapper)
    try:
        yield
    finally:
        for owner, name, _ in seams:
            delattr(owner, name)  # the class's method shows again


def label_of(rows: Sequence[Row], num_steps: int) -> str:
    indices = {row.step_index for row in rows}
    if len(indices) > 1:
        return "mixed"
    return "commit" if num_steps in indices else f"step {indices.pop()}"


def _timed(watch: Stopwatch, method: Callable[..., Any], stage: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        if stage == COPY and not args[0]:  # no row is finished
            return method(*args, **kwargs)
        with watch.span(stage):
            return method(*args, **kwargs)

    return timed

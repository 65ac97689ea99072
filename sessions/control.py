"""What a player's hands do: controls as they arrive, folded into what one chunk shall move by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from world.motion import Axes

REST: Axes = (0.0, 0.0, 0.0, 0.0)
MIN_TAP_S = 1 / 60  # clients sample at 60 Hz: a shorter tap cannot be told from one of this length
MAX_TAPS = 64  # waiting on one axis; together they outlast any chunk, later ones are dropped and counted


@dataclass(frozen=True, slots=True)
class Control:
    """Axes held from now on, and how far the mouse looked since the control before. ValueError if out of range."""

    seq: int
    t_ms: float  # the client's clock
    axes: Axes  # forward, right, turn (right +), pitch (up +), each in -1..1
    look_deg: tuple[float, float] = (0.0, 0.0)  # turn right, pitch up

    def __post_init__(self) -> None:
        if len(self.axes) != 4 or not all(-1.0 <= axis <= 1.0 for axis in self.axes):  # NaN fails as well
            raise ValueError(f"axes {self.axes} are not four numbers in -1..1")
        if len(self.look_deg) != 2 or not all(map(math.isfinite, (self.t_ms, *self.look_deg))):
            raise ValueError("a control's time and look must be finite")


@dataclass(frozen=True, slots=True)
class Segment:
    """Axes held for a part of a chunk."""

    duration_s: float
    axes: Axes


@dataclass(frozen=True, slots=True)
class Steer:
    """What one chunk shall move by: segments that fill it, and a look spread over it."""

    segments: tuple[Segment, ...]
    look_deg: tuple[float, float]
    control_seq: int  # the last control folded in, 0 if none


@dataclass(frozen=True, slots=True)
class HeldAxis:
    """One axis of `Hands`."""

    value: float
    pushed_ms: float
    pushed_area: float
    seen: bool
    taps: tuple[tuple[float, float], ...]  # (duration in seconds, mean)


@dataclass(frozen=True, slots=True)
class Hands:
    """All that a track of controls is between two of them."""

    axes: tuple[HeldAxis, HeldAxis, HeldAxis, HeldAxis]
    look_deg: tuple[float, float]
    seq: int
    t_ms: float | None  # of the last control; None before the first


@dataclass(slots=True)
class _Tap:
    """An axis that left rest and came back before any chunk saw it held."""

    duration_s: float
    mean: float


@dataclass(slots=True)
class _AxisTrack:
    """One axis since the last chunk started. A push lasts while the axis keeps one sign."""

    value: float = 0.0
    pushed_ms: float = 0.0  # of the present push, so far
    pushed_area: float = 0.0  # value x milliseconds of it
    seen: bool = True  # a chunk has used the present push, so its end is no tap
    taps: list[_Tap] = field(default_factory=list)

    def put(self, value: float, elapsed_ms: float) -> bool:
        """A new value, after the one before was held for so long; False if a tap had to be dropped."""
        kept = True
        self.pushed_ms += elapsed_ms
        self.pushed_area += self.value * elapsed_ms
        if _sign(value) != _sign(self.value):
            if self.value and not self.seen:
                kept = len(self.taps) < MAX_TAPS
                mean = self.pushed_area / self.pushed_ms if self.pushed_ms > 0 else self.value
                if kept:
                    self.taps.append(_Tap(max(self.pushed_ms / 1000, MIN_TAP_S), mean))
            self.pushed_ms = self.pushed_area = 0.0
            self.seen = False
        self.value = value
        return kept

    @property
    def held(self) -> HeldAxis:
        taps = tuple((tap.duration_s, tap.mean) for tap in self.taps)
        return HeldAxis(self.value, self.pushed_ms, self.pushed_area, self.seen, taps)

    @classmethod
    def of(cls, held: HeldAxis) -> _AxisTrack:
        taps = [_Tap(*tap) for tap in held.taps]
        return cls(held.value, held.pushed_ms, held.pushed_area, held.seen, taps)

    def take(self, duration_s: float) -> list[tuple[float, float]]:
        """(end in seconds, value) of the parts of a chunk: its taps one after another, then what is held."""
        parts: list[tuple[float, float]] = []
        used_s = 0.0
        for tap in self.taps:
            used_s = min(duration_s, used_s + tap.duration_s)
            parts.append((used_s, tap.mean))
        self.taps.clear()
        self.seen = used_s < duration_s  # else taps left no time for what is held, which may yet become a tap
        return [*parts, (duration_s, self.value)]


class ControlTrack:
    """Controls of one player between two chunk starts.

    A chunk uses the state held when it starts. A push that began and ended since the last start is a tap: it becomes a
    pulse of its real length at the head of the chunk, at most as long as the chunk; older history is not replayed.
    """

    def __init__(self) -> None:
        self.dropped = 0  # taps over MAX_TAPS
        self.restart()

    def restart(self) -> None:
        """Nothing held and a new client clock: another page took the controls, or nobody has them."""
        self._axes = tuple(_AxisTrack() for _ in REST)
        self._look = (0.0, 0.0)
        self._seq = 0
        self._t_ms: float | None = None  # of the last control, by the client's clock

    @property
    def hands(self) -> Hands:
        forward, right, turn, pitch = (axis.held for axis in self._axes)
        return Hands((forward, right, turn, pitch), self._look, self._seq, self._t_ms)

    def hold(self, hands: Hands, same_clock: bool) -> None:
        """Go on from other hands. By another clock and count of controls what is held counts from the first one."""
        self._axes = tuple(map(_AxisTrack.of, hands.axes))
        self._look = hands.look_deg
        self._seq, self._t_ms = (hands.seq, hands.t_ms) if same_clock else (0, None)

    @property
    def axes(self) -> Axes:
        """What is held now."""
        forward, right, turn, pitch = (axis.value for axis in self._axes)
        return forward, right, turn, pitch

    def put(self, control: Control) -> None:
        """ValueError, and nothing changes, if the sequence number or the clock goes back."""
        if control.seq <= self._seq:
            raise ValueError(f"control {control.seq} came after control {self._seq}")
        elapsed_ms = 0.0 if self._t_ms is None else control.t_ms - self._t_ms
        if elapsed_ms < 0:
            raise ValueError(f"control {control.seq} is older than the one before it")
        for axis, value in zip(self._axes, control.axes, strict=True):
            self.dropped += not axis.put(value, elapsed_ms)
        self._look = (self._look[0] + control.look_deg[0], self._look[1] + control.look_deg[1])
        self._seq, self._t_ms = control.seq, control.t_ms

    def take(self, duration_s: float) -> Steer:
        """Fold everything since the last chunk start into a chunk that moves for `duration_s`, which is positive."""
        parts = [axis.take(duration_s) for axis in self._axes]
        segments: list[Segment] = []
        start_s = 0.0
        for end_s in sorted({end for axis in parts for end, _ in axis if end > 0}):
            forward, right, turn, pitch = (next(v for end, v in axis if end >= end_s) for axis in parts)
            segments.append(Segment(end_s - start_s, (forward, right, turn, pitch)))
            start_s = end_s
        look, self._look = self._look, (0.0, 0.0)
        return Steer(tuple(segments), look, self._seq)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)

"""The price of a slow link or client: frames skipped before they are encoded, a lower bitrate. No clock, no IO.

A frame that was never encoded leaves no hole in the H.264 stream, so a skip needs no keyframe. `await send()` tells
nothing (seconds of video vanish into buffers): the only evidence is the client's acknowledgements, given when a packet
is taken in and held back while the decoder is behind. The frames of a chunk leave in one burst, and none of them is
missed before it is to be shown: a packet's age counts from when it is due in the schedule of a client without margin.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    late_s: float = 0.120  # over the shortest round trip: older than this, and frames are skipped
    stall_s: float = 5.0  # without progress: the client is gone
    first_round_trip_s: float = 1.0  # assumed until the first ack: decoders take a while to start
    round_trip_window_s: float = 30.0  # how long a shortest round trip is believed
    cut: float = 0.85  # of the bitrate, once a round trip
    probe: float = 1.05  # of the bitrate, each time nothing was late for `probe_s`
    probe_s: float = 0.5
    floor: float = 0.1  # of the ceiling: below it a picture is not worth sending
    hidden_s: float = 1.0  # between two frames for a page nobody sees
    unacked_packets: int = 256


@dataclass(frozen=True, slots=True)
class _Sent:
    packet: int
    sent_s: float
    due_s: float


class Backpressure:
    """One connection's sending. Ask `admits` before encoding a frame; tell it what was `sent` and `acked`."""

    def __init__(self, ceiling_bps: int, fps: int, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.skipped_frames = 0
        self.bitrate_bps = ceiling_bps
        self.hidden = False
        self._ceiling_bps = ceiling_bps
        self._interval_s = 1.0 / fps
        self._unacked: deque[_Sent] = deque()
        self._round_trips: deque[tuple[float, float]] = deque()  # (when, seconds), rising: the first is the shortest
        self._frame = 0
        self._due_s = float("-inf")  # of that frame
        self._sent_s = float("-inf")
        self._progress_s = float("-inf")
        self._cut_s = float("-inf")
        self._probed_s: float | None = None

    def admits(self, now_s: float) -> bool:
        """Whether to encode and send a frame now. A refusal counts as a skipped frame and may lower the bitrate."""
        self._probed_s = now_s if self._probed_s is None else self._probed_s
        if self._late(now_s):
            self._lower(now_s)
        elif now_s - self._probed_s >= self.limits.probe_s:
            self.bitrate_bps = min(self._ceiling_bps, int(self.bitrate_bps * self.limits.probe))
            self._probed_s = now_s
        waits = self.hidden and now_s - self._sent_s < self.limits.hidden_s
        if waits or self._late(now_s) or len(self._unacked) >= self.limits.unacked_packets:
            self.skipped_frames += 1
            return False
        return True

    def skip(self, num_frames: int) -> None:
        """Frames given up elsewhere, before encoding."""
        self.skipped_frames += num_frames

    def sent(self, packet: int, frame: int, now_s: float) -> None:
        """A packet with this frame of the stream left; one that is late shifts the schedule."""
        self._due_s = max(now_s, self._due_s + (frame - self._frame) * self._interval_s)
        self._frame, self._sent_s = frame, now_s
        self._unacked.append(_Sent(packet, now_s, self._due_s))

    def acked(self, packet: int, now_s: float, *, hidden: bool = False) -> None:
        """Every packet up to this one was taken in."""
        self.hidden = hidden
        newest: _Sent | None = None
        while self._unacked and self._unacked[0].packet <= packet:
            newest = self._unacked.popleft()
        if newest is not None:
            self._progress_s = now_s
            self._measure(now_s, now_s - newest.sent_s)

    def stalled(self, now_s: float) -> bool:
        """Whether something is unacknowledged and nothing has been for too long."""
        if not self._unacked:
            return False
        return now_s - max(self._progress_s, self._unacked[0].sent_s) > self.limits.stall_s

    @property
    def unacked_packets(self) -> int:
        return len(self._unacked)

    @property
    def round_trip_s(self) -> float:
        """The shortest of the last while."""
        return self._round_trips[0][1] if self._round_trips else self.limits.first_round_trip_s

    def _late(self, now_s: float) -> bool:
        if not self._unacked:
            return False
        return now_s - self._unacked[0].due_s > self.round_trip_s + self.limits.late_s

    def _lower(self, now_s: float) -> None:
        self._probed_s = now_s
        if now_s - self._cut_s >= max(self.round_trip_s, self._interval_s):
            floor_bps = int(self._ceiling_bps * self.limits.floor)
            self.bitrate_bps = max(floor_bps, int(self.bitrate_bps * self.limits.cut))
            self._cut_s = now_s

    def _measure(self, now_s: float, round_trip_s: float) -> None:
        """A sliding minimum: an older sample that is not shorter will never be the shortest again."""
        while self._round_trips and self._round_trips[-1][1] >= round_trip_s:
            self._round_trips.pop()
        self._round_trips.append((now_s, round_trip_s))
        while now_s - self._round_trips[0][0] > self.limits.round_trip_window_s:
            self._round_trips.popleft()

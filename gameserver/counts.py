"""What the sockets' side has done since it started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    connections: int = 0
    sessions: int = 0
    resumed: int = 0
    frames_sent: int = 0
    bytes_sent: int = 0
    frames_skipped: int = 0
    replies_dropped: int = 0  # to a client that does not read
    watching: int = 0  # spectators let in
    packets_relayed: int = 0  # to spectators
    packets_unrelayed: int = 0  # that a spectator did not get while it waited for a key frame
    chunks_undelivered: int = 0  # dropped between the threads, because the event loop is behind
    errors: Counter[str] = field(default_factory=Counter)  # by code

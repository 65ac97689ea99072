"""Whether recordings come out again to the bit; where not, from which chunk on, and by what as far as one can tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sessions.recording import Recording
from sessions.records import Chunk, floats
from sessions.replay import Replayed, ReplayError, refusal, replay, start_altered, start_of
from world.chunk import Identity, Picture, Start, World

Outcome = Literal["equal", "differs", "refused", "unknown"]


@dataclass(slots=True)
class Finding:
    """What is known of one recording."""

    num_chunks: int  # to be made again
    outcome: Outcome = "unknown"
    chunk: int | None = None  # the first that differs
    reason: str = ""  # a sentence, empty if all is equal
    checked: int = 0  # chunks whose latents were equal to the bit
    made: int = 0  # chunks made again
    drift: float = 0.0  # the largest difference of a latent channel's mean, where bits may differ
    drift_chunk: int | None = None
    arithmetic: dict[str, tuple[str, str]] = field(default_factory=dict)  # that is another: recorded, here

    def differs(self, chunk: int | None, reason: str) -> None:
        self.outcome, self.chunk, self.reason = "differs", chunk, reason


def verify(
    world: World,
    identity: Identity,
    recordings: Sequence[Recording],
    num_chunks: Sequence[int],
    see: Callable[[Replayed], None] = lambda replayed: None,
    compare: bool = True,
) -> list[Finding]:
    """Make the first `num_chunks` of each recording again, all side by side, and compare. `see` gets every chunk.

    Without `compare` nothing is held against the recording but its inputs, and the outcome stays unknown.
    """
    findings = [Finding(wanted) for wanted in num_chunks]
    starts: dict[int, Start] = {}
    for i, (finding, recording) in enumerate(zip(findings, recordings, strict=True)):
        start = _begin(world, identity, finding, recording, compare)
        if start is not None:
            starts[i] = start
    dropped: set[int] = set()
    for replayed in replay(world, recordings, starts, [finding.num_chunks for finding in findings], dropped):
        finding = findings[replayed.track]
        finding.made += 1
        if compare and not _compare(finding, replayed.chunk, replayed.picture):
            dropped.add(replayed.track)
            continue
        see(replayed)
    for finding, recording in zip(findings, recordings, strict=True):
        if compare and finding.outcome == "unknown" and not finding.reason:
            _conclude(finding, recording)
    return findings


def _begin(world: World, identity: Identity, finding: Finding, recording: Recording, compare: bool) -> Start | None:
    """What to start from; None for a recording that is refused."""
    header = recording.header
    assert header is not None
    reason = refusal(header, world, identity)
    if reason is None:
        try:
            start = start_of(header, world)
        except ReplayError as fault:
            reason = str(fault)
    if reason is not None:
        finding.outcome, finding.reason = "refused", reason
        return None
    names = {*header.arithmetic, *identity.arithmetic}
    pairs = {name: (header.arithmetic.get(name, "-"), identity.arithmetic.get(name, "-")) for name in sorted(names)}
    finding.arithmetic = {name: (there, here) for name, (there, here) in pairs.items() if there != here}
    if compare and not finding.arithmetic and (altered := start_altered(header, world, start)):
        finding.differs(None, f"the {' and the '.join(altered)} became another conditioning")
        finding.num_chunks = 0
    for made, chunk in enumerate(recording.chunks[: finding.num_chunks]):
        if chunk.altered:
            finding.differs(chunk.chunk, f"its {' and '.join(chunk.altered)} are not those that were recorded")
            finding.num_chunks = made
            break
    return start


def _compare(finding: Finding, chunk: Chunk, picture: Picture) -> bool:
    """Whether to go on."""
    if picture.digest == chunk.digest:
        finding.checked += 1
        return True
    if finding.arithmetic:
        drift = _drift(picture.means, floats(chunk.means))
        if finding.drift_chunk is None or drift > finding.drift:
            finding.drift, finding.drift_chunk = drift, chunk.chunk
        return True
    finding.differs(chunk.chunk, "its inputs are those that were recorded, its latents are not")
    return False


def _conclude(finding: Finding, recording: Recording) -> None:
    """Nothing was found to differ: whether that is enough to say that all is equal."""
    cut = recording.verdict.state == "damaged" and finding.num_chunks == len(recording.chunks)
    if cut:
        finding.differs(len(recording.chunks), f"{recording.verdict.reason} at byte {recording.verdict.offset}")
    elif finding.checked < finding.made:
        finding.reason = (
            f"it was recorded on another arithmetic: {finding.checked} of {finding.made} chunks are equal to the bit, "
            f"the means of latent channels differ by at most {finding.drift:.3g} (chunk {finding.drift_chunk})"
        )
    elif finding.made == 0 and recording.chunks:
        finding.reason = "nothing of it was made again"
    elif finding.num_chunks == len(recording.chunks) and not recording.ended:
        finding.reason = "it has no end mark: what there is is equal, and something may be missing"
    else:
        finding.outcome = "equal"


def _drift(here: NDArray[np.float32], recorded: NDArray[np.float32]) -> float:
    if here.shape != recorded.shape:
        return math.inf
    return float(np.nan_to_num(np.abs(here - recorded), nan=math.inf).max(initial=0.0))

"""What the engine tells, and what a recording keeps of it: notes for the sockets, behind the records they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gameserver.mailbox import Join
from gameserver.notes import Note
from gameserver.protocol import VERSION
from gameserver.recorder import Entry, Recorder
from sessions.records import Mark, MarkKind, Record, chunk_of, header_of
from sessions.tick import Finished
from world.chunk import Identity, Report, World


class Diary:
    """Belongs to the engine's thread. Without a recorder it keeps nothing and hands notes on."""

    def __init__(self, deliver: Callable[[Sequence[Note]], None], recorder: Recorder | None) -> None:
        self._deliver = deliver
        self._recorder = recorder
        self._entries: list[Entry] = []  # since the last time something was told
        self._world: World | None = None
        self._identity: Identity | None = None

    def open(self, world: World, report: Report) -> None:
        """Before the first session: whose recordings these will be."""
        if self._recorder is not None:
            self._world, self._identity = world, world.identify(report)

    def begin(self, join: Join) -> None:
        if self._recorder is None or self._world is None or self._identity is None:
            return
        header = partial(
            header_of, self._world, self._identity, join.start, join.control, join.scene_id, join.picture,
            run=self._recorder.run, session=join.session_id, protocol=VERSION,
        )  # fmt: skip
        self._keep(join.session_id, header, begins=True)
        self.mark(join.session_id, "join")

    def chunk(self, finished: Finished) -> None:
        self._keep(finished.session_id, partial(chunk_of, finished))

    def mark(self, session_id: str, kind: MarkKind, text: str = "") -> None:
        self._keep(session_id, partial(Mark, kind=kind, text=text))

    def tell(self, notes: Sequence[Note], now_s: float) -> None:
        """Hand over what was kept, and the notes behind it."""
        if not notes and not self._entries:
            if self._recorder is not None:
                self._recorder.check(now_s)
            return
        if self._recorder is None:
            self._deliver(notes)
        else:
            entries, self._entries = self._entries, []
            self._recorder.post(notes, entries, now_s)

    def _keep(self, session_id: str, make: Callable[[], Record], begins: bool = False) -> None:
        if self._recorder is not None:
            self._entries.append(Entry(session_id, make, begins))

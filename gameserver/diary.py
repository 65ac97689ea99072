"""What the engine tells, and what recordings and saves keep of it: notes for the sockets, behind the records they
belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gameserver.journal import Journal
from gameserver.mailbox import Fork, Join, Keep, Return
from gameserver.notes import Note
from gameserver.protocol import VERSION
from gameserver.recorder import Entry, Recorder
from gameserver.saves import Extent, Saves
from sessions.moment import Save
from sessions.records import Mark, MarkKind, Record, chunk_of, header_of
from sessions.tick import Finished
from world.chunk import Identity, Report, World
from world.snapshot import maker


class Diary:
    """Belongs to the engine's thread. Without a recorder and saves it keeps nothing and hands notes on."""

    def __init__(
        self, deliver: Callable[[Sequence[Note]], None], recorder: Recorder | None, saves: Saves | None
    ) -> None:
        self.saves = saves
        self._deliver = deliver
        self._recorder = recorder
        self._entries: list[Entry] = []  # since the last time something was told
        self._world: World | None = None
        self._identity: Identity | None = None

    def open(self, world: World, report: Report) -> None:
        """Before the first session: whose recordings and saves these will be."""
        if self._recorder is not None or self.saves is not None:
            self._world, self._identity = world, world.identify(report)
        if self.saves is not None and self._identity is not None:
            self.saves.open(maker(world.name, self._identity), world.state_bytes)

    def begin(self, join: Join) -> None:
        if self._recorder is None or self._world is None or self._identity is None:
            return
        header = partial(
            header_of, self._world, self._identity, join.start, join.control, join.scene_id, join.picture,
            run=self._recorder.run, session=join.session_id, protocol=VERSION,
        )  # fmt: skip
        self._entries.append(Entry(join.session_id, header, opens=Journal))
        self.mark(join.session_id, "join")

    def fork(self, fork: Fork) -> None:
        """Its recording begins with all that led to the save, so it can be verified alone."""
        recording = fork.kept.recording
        if self._recorder is not None and recording is not None:
            name = self._recorder.path(fork.session_id).stem
            opens = partial(Journal, begins_with=recording)
            self._entries.append(Entry(fork.session_id, partial(Mark, kind="fork", text=name), opens=opens))

    def back(self, letter: Return) -> None:
        """A session that was lost goes on in its recording."""
        mark = partial(Mark, kind="recovered")
        self._entries.append(Entry(letter.session_id, mark, opens=lambda _: letter.journal))

    def chunk(self, finished: Finished) -> None:
        self._keep(finished.session_id, partial(chunk_of, finished))

    def mark(self, session_id: str, kind: MarkKind, text: str = "") -> None:
        self._keep(session_id, partial(Mark, kind=kind, text=text))

    def save(self, letter: Keep, save: Save) -> None:
        """Written with all of the recording before it, which the mark of it ends."""
        assert self.saves is not None
        put = partial(self.saves.put, letter.session_id, letter.save_id, save, letter.place)
        self._keep(letter.session_id, partial(Mark, kind="save", text=letter.save_id), then=put)

    def end(self, session_id: str, why: str) -> None:
        saves = self.saves
        forget = None if saves is None else lambda _: saves.end(session_id)
        self._keep(session_id, partial(Mark, kind="end", text=why), then=forget)

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

    def _keep(
        self, session_id: str, make: Callable[[], Record], then: Callable[[Extent | None], None] | None = None
    ) -> None:
        if self._recorder is not None:
            self._entries.append(Entry(session_id, make, then=then))
        elif then is not None:
            then(None)

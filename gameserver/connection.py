"""One player's WebSocket: messages in, frames out. A reader, a writer and a watch; none of them waits for a tick."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

from websockets.exceptions import ConnectionClosed

from gameserver import protocol
from gameserver.door import Door
from gameserver.encoder import Codec, choose_codec
from gameserver.lobby import Seat
from gameserver.mailbox import Extend, Fork, Join, Keep, Presence, PromptChange, Rewind, Slack, Steer
from gameserver.notes import Frames, Loaded, Refused, Saved
from gameserver.outbox import Outbox
from gameserver.protocol import (
    EXPELLED,
    VERSION,
    Ack,
    Bye,
    Control,
    Hello,
    LoadGame,
    Ping,
    Pong,
    ProtocolError,
    SaveGame,
    SetPrompt,
    Share,
    Shared,
    WantKeyframe,
    Welcome,
    encode,
)
from gameserver.saves import Place
from gameserver.turns import Turns
from gameserver.websocket import PlaySocket
from gameserver.wire import Event, PoseBatch, ServerProtocol, State
from sessions import control

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]

NO_WAY_BACK = ("unknown_save", "bad_save")  # answers to a `load`
LAST_WORDS_S = 1.0  # to send an error before the line is cut


class Connection:
    def __init__(self, socket: PlaySocket, door: Door) -> None:
        self.socket = socket
        self.door = door
        self.protocol = ServerProtocol()
        self.seat: Seat | None = None
        self.watched: Seat | None = None  # somebody else's
        self._loop = asyncio.get_running_loop()
        self._opened_s = self._loop.time()
        self._tasks: set[asyncio.Task[None]] = set()
        self._code: str | None = None  # of the error that ended it
        self._outbox = Outbox(socket, door.encoders, door.counts)
        self._prompt_wanted: str | None = None  # to be encoded after the one under way
        self._prompting = False
        self._turns: Turns | None = None  # in lockstep
        self._load_wanted: str | None = None  # likewise
        self._loading = False
        self._going_back = False  # from a `load` to its answer: what is sent meanwhile is lost

    async def run(self) -> None:
        """Until either side ends it. Raises nothing."""
        self.door.counts.connections += 1
        self.socket.on_flood = lambda: self.end_soon(ProtocolError("too_fast", "too many frames a second"))
        self._spawn(self._outbox.write)
        self._spawn(self._watch)
        try:
            await self._guard(self._read)
        finally:
            for task in self._tasks:
                task.cancel()
            self.protocol.close()
            self._leave_seat()
            if self.watched is not None:
                self.watched.audience.leave(self._outbox)

    # What the door calls. None of these blocks.

    def deliver(self, frames: Frames) -> None:
        self._outbox.put(frames, self.door.world.geometry.fps)

    def refuse(self, refused: Refused) -> None:
        error = ProtocolError(refused.code, refused.message)
        if error.fatal:
            self.end_soon(error)
        else:
            self._reply_error(error)
        if refused.code in NO_WAY_BACK:
            self._going_back = False

    def saved(self, note: Saved) -> None:
        self._outbox.reply(protocol.Saved(save=note.save_id, chunk=note.chunk_index))

    def loaded(self, note: Loaded) -> None:
        self._going_back = False
        self._outbox.loaded(note)

    def end_soon(self, error: ProtocolError) -> None:
        self._spawn(partial(self._end, error))

    # Reading.

    async def _read(self) -> None:
        async for data in self.socket:
            if self._code is not None:
                continue  # what was said is on its way; read on, so that the line closes in order
            try:
                event = self.protocol.receive(data, self._loop.time())
            except ProtocolError as error:
                if error.fatal:
                    raise
                self._reply_error(error)
                continue
            await self._take(event)
            if self.protocol.state is State.CLOSED:  # a bye
                await self.socket.close()
                return

    async def _take(self, event: Event) -> None:
        seat = self.seat if self.seat is not None and self.seat.occupant is self else None
        if self._going_back and isinstance(event, Control | PoseBatch | SetPrompt):
            return
        if self._turns is not None and seat is not None and await self._turns.take(event):
            return
        match event:
            case Hello():
                self._spawn(partial(self._enter, event))
            case Ping():
                self._outbox.reply(Pong(t_ms=event.t_ms))
            case Bye():
                if seat is not None:
                    self.door.release(seat)
            case Ack() if self.watched is not None:
                self._outbox.acked(event)
            case WantKeyframe() if self.watched is not None:
                self._outbox.lost_track()
            case _ if seat is None:  # lost to another connection while messages were on their way
                pass
            case Control():
                steer = control.Control(event.seq, event.t_ms, event.axes, event.look)
                self.door.mailbox.put(Steer(seat.session_id, steer))
            case PoseBatch():
                if not self.door.mailbox.put(Extend(seat.session_id, event.seq, event.poses)):
                    self._reply_error(ProtocolError("pose_queue_full", "too many poses are on their way"))
            case SetPrompt():
                self._prompt_wanted = event.text
                if not self._prompting:
                    self._spawn(self._change_prompt)
            case SaveGame():
                self._save(seat)
            case LoadGame():
                self._load_wanted, self._prompt_wanted, self._going_back = event.save, None, True
                if self._turns is not None:
                    self._turns.forget()
                if not self._loading:
                    self._spawn(self._load)
            case WantKeyframe():
                self._outbox.key_wanted = True
            case Share():
                self._outbox.reply(Shared(code=self._share(seat, event.on)))
            case Ack():
                chunk_index = self._outbox.acked(event)
                if event.slack_ms is not None and chunk_index is not None:
                    self.door.mailbox.put(Slack(seat.session_id, chunk_index, event.slack_ms / 1000))

    # Coming in.

    async def _enter(self, hello: Hello) -> None:
        """From hello to welcome: the seat of the token, or a new one."""
        door = self.door
        door.check_open()
        if hello.watch is not None:
            self._watch_session(hello.watch, hello)
            return
        seat = await door.seat_of(hello.token)
        resumed = seat is not None
        seat = await self._join(hello) if seat is None else self._resume(seat, hello)
        codec = choose_codec(hello.codecs)
        self.protocol.welcomed()
        self._outbox.reply(self._welcome(seat, resumed, codec))
        seat.control_seq = 0  # from here on by this connection's count
        if seat.lockstep:
            self._turns = Turns(door, seat, self._reply_error, self._loop.time)
        left = None if self._turns is None else self._turns.left
        seat.audience.follow(self._outbox, codec)
        self._outbox.audience = seat.audience
        self._outbox.open(codec, door.world.geometry, door.settings.limits, left)

    def _watch_session(self, code: str, hello: Hello) -> None:
        """ProtocolError `not_shared`, `other_codec`, `full`."""
        door, seat = self.door, self.door.lobby.by_code(code)
        if seat is None or seat.audience.codec is None:
            raise ProtocolError("not_shared", "no session can be watched by this code")
        codec = seat.audience.codec
        if codec not in hello.codecs:
            raise ProtocolError("other_codec", f"this session is sent as {codec}")
        seat.audience.join(self._outbox, self.end_soon)
        self.watched = seat
        door.counts.watching += 1
        self.protocol.welcomed()
        self._outbox.reply(self._welcome(seat, False, codec))
        self._outbox.watch(door.world.geometry, door.settings.limits)

    def _share(self, seat: Seat, on: bool) -> str:
        """The code to watch by, the same until sharing is turned off."""
        audience = seat.audience
        if not on:
            audience.code = ""
            audience.end(ProtocolError("not_shared", "the player does not share this session any more"))
        elif not audience.code:
            audience.code = secrets.token_urlsafe(9)
        return audience.code

    def _resume(self, seat: Seat, hello: Hello) -> Seat:
        if hello.control != seat.control:
            raise ProtocolError("out_of_order", f"this session is moved by {seat.control}, not by {hello.control}")
        if hello.lockstep != seat.lockstep:
            raise ProtocolError("out_of_order", "in lockstep or not is said once, when a session begins")
        if seat.occupant is not None:
            seat.occupant.end_soon(ProtocolError("replaced", "another connection continued this session"))
        self.door.occupied(seat)
        self._sit(seat)
        self.door.mailbox.put(Presence(seat.session_id, True))
        self.door.counts.resumed += 1
        return seat

    async def _join(self, hello: Hello) -> Seat:
        """A new session, of a save or of a place."""
        door = self.door
        if hello.save is not None:
            seat = await self._fork(hello, hello.save)
        else:
            seat = await self._begin(hello)
        await door.enter(seat)
        door.counts.sessions += 1
        return seat

    async def _fork(self, hello: Hello, save_id: str) -> Seat:
        door = self.door
        kept = await door.read_save(save_id, fatal=True)
        place, moment = kept.place, kept.save.moment
        if hello.control != moment.control:
            raise ProtocolError("out_of_order", f"that session is moved by {moment.control}, not by {hello.control}")
        seat = door.reserve(hello.control, place.scene, moment.prompt, place.seed)
        seat.own_prompt, seat.first_chunk, seat.lockstep = place.own_prompt, moment.chunk_index, hello.lockstep
        try:
            prompt = None if moment.next_prompt is None else await door.preparation.prompt(moment.next_prompt)
            await self._admit(seat, Fork(seat.session_id, kept, prompt, seat.lockstep))
        except BaseException:
            door.release(seat)
            raise
        return seat

    async def _admit(self, seat: Seat, letter: Join | Fork) -> None:
        """Until the game has taken the session in."""
        self.door.check_open()
        self._sit(seat)
        if not self.door.mailbox.put(letter):
            raise ProtocolError("full", "too many players are coming in at once")
        await seat.joined

    async def _begin(self, hello: Hello) -> Seat:
        door = self.door
        preparation, words = door.preparation, (hello.prompt or "").strip()
        seat = door.reserve(hello.control, preparation.scene(hello.scene).id, words, hello.seed)
        seat.lockstep = hello.lockstep
        try:
            try:
                if words:
                    await preparation.prompt(words)
            except ProtocolError as error:  # a prompt that cannot be is no reason to stay outside
                self._reply_error(error)
                words = ""
            place = await preparation.place(hello, words, seat.seed)
            seat.scene_id, seat.own_prompt, seat.prompt = hello.scene or place.id, place.prompt, words or place.prompt
            prompt = await preparation.prompt(seat.prompt)
            start = await preparation.start(hello, place, prompt, seat.seed)
            picture = None if place in door.world.scenes else place.image  # a recording refers to scenes by name
            join = Join(seat.session_id, start, seat.control, place.id, picture, seat.lockstep)
            await self._admit(seat, join)
        except BaseException:
            door.release(seat)
            raise
        return seat

    def _sit(self, seat: Seat) -> None:
        self.seat, seat.occupant = seat, self

    def _leave_seat(self) -> None:
        seat, self.seat = self.seat, None
        if seat is None or seat.occupant is not self or self.door.lobby[seat.session_id] is None:
            return
        if self.door.closing or self._code in EXPELLED or self.socket.refused in EXPELLED or not seat.joined.done():
            self.door.release(seat)
        else:
            self.door.vacated(seat)

    def _welcome(self, seat: Seat, resumed: bool, codec: Codec) -> Welcome:
        world, lobby = self.door.world, self.door.lobby
        geometry = world.geometry
        return Welcome(
            version=VERSION, session=seat.session_id, token="" if self.watched else seat.token, resumed=resumed,
            world=world.name, scene=seat.scene_id, prompt=seat.prompt, seed=seat.seed,
            width=geometry.width, height=geometry.height, fps=geometry.fps,
            chunk_frames=geometry.video_frames(1), first_chunk_frames=geometry.video_frames(0),
            codec=codec, control=seat.control, players=len(lobby), capacity=lobby.capacity,
            watching=self.watched is not None,
            chunk=seat.chunk if resumed else seat.first_chunk, control_seq=seat.control_seq if resumed else 0,
        )  # fmt: skip

    async def _change_prompt(self) -> None:
        """One at a time; of those that wait only the newest counts."""
        self._prompting = True
        try:
            while self._prompt_wanted is not None and self.seat is not None:
                text, self._prompt_wanted = self._prompt_wanted, None
                try:
                    prompt = await self.door.preparation.prompt(text or self.seat.own_prompt)
                except ProtocolError as error:
                    self._reply_error(error)
                else:
                    if not self._going_back:
                        self.door.mailbox.put(PromptChange(self.seat.session_id, prompt))
        finally:
            self._prompting = False

    def _save(self, seat: Seat) -> None:
        if self.door.saves is None:
            self._reply_error(ProtocolError("no_saves", "this server keeps no saves"))
            return
        save_id = f"{seat.session_id}-{secrets.token_hex(16)}"  # whoever knows it may begin there
        place = Place(seat.scene_id, seat.own_prompt, seat.seed)
        self.door.mailbox.put(Keep(seat.session_id, save_id, place))

    async def _load(self) -> None:
        """As with prompts."""
        self._loading = True
        try:
            while self._load_wanted is not None and self.seat is not None:
                save_id, self._load_wanted = self._load_wanted, None
                try:
                    save = (await self.door.read_save(save_id)).save
                    asked = save.moment.next_prompt
                    prompt = None if asked is None else await self.door.preparation.prompt(asked)
                except ProtocolError as error:
                    self._reply_error(error)
                    self._going_back = self._load_wanted is not None
                else:
                    self.door.mailbox.put(Rewind(self.seat.session_id, save_id, save, prompt))
        finally:
            self._loading = False

    def _reply_error(self, error: ProtocolError) -> None:
        self.door.counts.errors[error.code] += 1
        self._outbox.reply(error.to_message())

    # Watching.

    async def _watch(self) -> None:
        """A client that says no hello or takes nothing in is cut; the others hear once a second how it goes."""
        settings = self.door.settings
        told_s = self._loop.time()
        pause_s = min(settings.stats_s, settings.hello_s, settings.limits.stall_s, settings.patience_s) / 4
        while True:
            await asyncio.sleep(pause_s)
            now_s = self._loop.time()
            if self.protocol.state is State.EXPECT_HELLO and now_s - self._opened_s > settings.hello_s:
                raise ProtocolError("out_of_order", f"no hello within {settings.hello_s:.0f} s")
            backpressure = self._outbox.backpressure
            if backpressure is None:
                continue
            if self._turns is not None and now_s - self._turns.since_s > settings.patience_s:
                raise ProtocolError("idle", f"in lockstep nothing was steered for {settings.patience_s:.0f} s")
            if backpressure.stalled(now_s):
                raise ProtocolError("slow_client", f"nothing was acknowledged for {settings.limits.stall_s:.0f} s")
            if now_s - told_s >= settings.stats_s:
                told_s = now_s
                self._outbox.reply(
                    self._outbox.pace.stats(now_s, backpressure, self.door.lobby, self.door.engine.counters)
                )

    # Ending.

    def _spawn(self, work: Work) -> None:
        task = self._loop.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Work) -> None:
        """Whatever goes wrong in a part of this connection ends this connection, with a code, and nothing else."""
        try:
            await work()
        except ProtocolError as error:
            await self._end(error)
        except ConnectionClosed:
            pass
        except Exception:
            log.exception("a connection failed")
            await self._end(ProtocolError("internal", "a fault of the server; it is in its log"))

    async def _end(self, error: ProtocolError) -> None:
        """Say why and close; a client that does not listen is cut."""
        if self._code is not None:
            return
        self._code = error.code
        self.door.counts.errors[error.code] += 1
        self.protocol.close()
        if error.code in EXPELLED:
            self._leave_seat()  # now: saying why may take a while
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self.socket.send(encode(error.to_message()))
                await self.socket.close(error.close_code, error.code)
        self.socket.transport.abort()

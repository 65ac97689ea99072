"""The processes beside rank 0 that compute one world with it: how they are started, told what to do and missed.

They are children of the process that leads, started by torch's own launcher (`torch.multiprocessing`): so the process
that somebody started, with its terminal, signals and exit status, is rank 0 itself and needs nobody above it. Each does
what it is told, in the order it is told, and says when it is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from world.chunk import Report, WorldError
from world.parcel import Parcel, peek, take
from world.ranks import PeerLost, Ranks, is_peer_lost, join, leave

LOAD, END = "load", "end"  # verbs of their own; others are methods of a part
SETTLE_S = 1.0  # for a process that is ending to end, and for those that noticed to say so
# For rank 0's part of a verb on a GPU: nobody sees whether it computes, compiles or waits for another rank.
GPU_VERB_S = 60.0
ABANDON_S = 10.0  # for a GPU to give up waiting

LoadPart = Callable[[Ranks, Report], Any]  # a rank's part of a world; pickled by name, as every process calls it


@dataclass(frozen=True, slots=True)
class Done:
    made: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A ValueError or KeyError, before anything changed."""

    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It does not go on."""

    why: str
    is_cause: bool  # False: it missed another rank


Answer = Done | Refused | Failed


class Followers:
    """As rank 0 sees them. WorldError, always the same one, from the first loss on: then all of them are ended."""

    def __init__(self, load: LoadPart, size: int, deadline_s: float, on_gpus: bool = False):
        if dist.is_initialized():
            raise WorldError("this process computes a world with other ranks already: one at a time")
        self.size, self.deadline_s = size, deadline_s
        self.lost: str | None = None
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ours, theirs = zip(*(Pipe() for _ in range(size - 1)), strict=True)
        threads = torch.get_num_threads()
        arguments = load, size, store.port, theirs, deadline_s, threads, on_gpus
        started = mp.start_processes(follow, arguments, nprocs=size - 1, join=False, daemon=True, start_method="spawn")
        for end in theirs:
            end.close()
        self._pipes: tuple[Connection, ...] = ours
        self._processes: Sequence[BaseProcess] = started.processes
        self.leaving = contextlib.ExitStack()  # what is done when the others have ended, the last thing first
        self.leaving.callback(leave)
        self.end = weakref.finalize(self, _end, self._pipes, self._processes, self.leaving)
        self.ranks = Ranks(0, size)
        self.answers(None)  # all of them run: now they can find each other
        self.ranks = join(0, size, store, deadline_s, on_gpus)
        self.leaving.callback(_abandon, self.ranks, self.leaving)  # the group's own end would wait for them

    def tell(self, verb: str, *arguments: Any) -> None:
        """All of them, to call this method of their part of the world."""
        self.check()
        try:
            Parcel.of((verb, arguments)).post(self._pipes, self.ranks.broadcast)
        except (OSError, PeerLost):
            raise self.blame() from None

    def answers(self, deadline_s: float | None) -> list[Answer]:
        """What each says to what it was told, by rank. Nobody may be silent for longer than the deadline, if any."""
        if self.lost is not None:
            raise WorldError(self.lost)
        answers: dict[int, Answer] = {}
        while len(answers) < len(self._pipes):
            silent = [pipe for rank, pipe in enumerate(self._pipes, 1) if rank not in answers]
            ready = wait([*silent, *(process.sentinel for process in self._processes)], deadline_s)
            if not any(pipe in ready for pipe in silent):
                raise self.blame(answers)
            for rank, pipe in enumerate(self._pipes, 1):
                if pipe in ready and rank not in answers:
                    try:
                        answers[rank] = take(pipe, partial(self.ranks.receive, source=rank))
                    except (OSError, EOFError, PeerLost):
                        raise self.blame(answers) from None
        if any(isinstance(answer, Failed) for answer in answers.values()):
            raise self.blame(answers)
        return [answers[rank] for rank in sorted(answers)]

    @contextlib.contextmanager
    def watched(self, patient: bool) -> Iterator[None]:
        """While rank 0 does its part of a verb. A GPU waits for others for ever, and the host for the GPU: so another
        thread sees to it that somebody is gone, or that it takes too long unless one is patient, and ends the wait."""
        if self.ranks.gpus is None:
            yield
            return
        done, doing = Pipe(duplex=False)
        watch = threading.Thread(target=self._watch, args=(done, None if patient else GPU_VERB_S), daemon=True)
        watch.start()
        try:
            yield
        finally:
            doing.close()
            watch.join()
            done.close()

    def _watch(self, done: Connection, limit_s: float | None) -> None:
        if done in wait([done, *(process.sentinel for process in self._processes)], limit_s):
            return
        lost = self.blame(otherwise=f"a GPU has waited for {limit_s or 0:g} s for another, so all ranks end")
        threading.Thread(target=self.ranks.abandon, daemon=True).start()
        if not wait([done], ABANDON_S):
            print(f"manyworlds: {lost}", file=sys.stderr, flush=True)
            os._exit(1)

    def check(self) -> None:
        """WorldError if one of them is gone."""
        if self.lost is not None:
            raise WorldError(self.lost)
        if not all(process.is_alive() for process in self._processes):
            raise self.blame()

    def blame(self, answers: Mapping[int, Answer] | None = None, otherwise: str | None = None) -> WorldError:
        """Somebody is missing: who, in a sentence, or this one if nobody knows. Ends all of them."""
        if self.lost is None:
            known = dict(answers or {})
            self.lost = self._culprit(known) or otherwise or self._silent(known)
            self._kill()
        return WorldError(self.lost)

    def fail(self, fault: Exception) -> Exception:
        """Rank 0 cannot go on: the fault, or the sentence of the rank whose it is. Ends all of them."""
        if self.lost is None:
            self.lost = self._culprit({})
            if self.lost is None:
                self.lost = f"rank 0 of {self.size} failed: {type(fault).__name__}: {fault}"
                self._kill()
                return fault
            self._kill()
        return WorldError(self.lost)

    def _culprit(self, answers: dict[int, Answer]) -> str | None:
        """Whoever says that it failed, else whoever is gone; adds what others still have to say to the answers."""
        ending = wait([process.sentinel for process in self._processes], SETTLE_S)
        for process in self._processes:
            if process.sentinel in ending:  # which is before it has an exit status
                process.join(SETTLE_S)
        for rank, pipe in enumerate(self._pipes, 1):
            with contextlib.suppress(OSError, EOFError):
                if rank not in answers and pipe.poll():
                    answers[rank] = peek(pipe) or Done(None)
        for rank, answer in answers.items():
            if isinstance(answer, Failed) and answer.is_cause:
                return f"rank {rank} of {self.size} failed: {answer.why}"
        for rank, process in enumerate(self._processes, 1):
            if process.exitcode is not None and not isinstance(answers.get(rank), Failed):
                return f"rank {rank} of {self.size} is gone ({_ending(process.exitcode)}), so all of them end"
        return None

    def _silent(self, answers: Mapping[int, Answer]) -> str:
        rank = next((rank for rank in range(1, self.size) if rank not in answers), None)
        if rank is None:
            return f"the {self.size} ranks have lost each other, so all of them end"
        return f"rank {rank} of {self.size} has not answered for {self.deadline_s:g} s, so all of them end"

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _end(pipes: Sequence[Connection], processes: Sequence[BaseProcess], leaving: contextlib.ExitStack) -> None:
    """Nobody leads any more, in good order."""
    for pipe, process in zip(pipes, processes, strict=True):
        with contextlib.suppress(OSError):
            if process.is_alive():
                Parcel.of((END, ())).post([pipe], lambda bulk: None)
        pipe.close()
    for process in processes:
        process.join(SETTLE_S)
        if process.is_alive():
            process.kill()
            process.join()
    leaving.close()


def _abandon(ranks: Ranks, leaving: contextlib.ExitStack) -> None:
    """Nothing else is done if a backend does not let go."""
    abandoning = threading.Thread(target=ranks.abandon, daemon=True)
    abandoning.start()
    abandoning.join(ABANDON_S)
    if abandoning.is_alive():
        leaving.pop_all()


def follow(
    number: int, load: LoadPart, size: int, port: int, pipes: Sequence[Connection], deadline_s: float, threads: int,
    on_gpus: bool,
) -> None:  # fmt: skip
    """The life of the process of rank `number` + 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the leader, who ends the others
    torch.set_num_threads(threads)
    index, pipe = number + 1, pipes[number]
    for other in pipes:
        if other is not pipe:
            other.close()
    code = 1
    try:
        Parcel.of(Done(None)).post([pipe], lambda bulk: None)
        if on_gpus:  # whose waits do not end when nobody leads any more
            threading.Thread(target=_follow_to_the_end, args=(index, size), daemon=True).start()
        ranks = join(index, size, dist.TCPStore("127.0.0.1", port, is_master=False), deadline_s, on_gpus)
        code = _obey(pipe, ranks, load)
    except (EOFError, OSError):
        _mourn(index, size)
    os._exit(code)  # whatever the threads of a backend still wait for


def _follow_to_the_end(index: int, size: int) -> None:
    leader = parent_process()
    assert leader is not None
    leader.join()
    threading.main_thread().join(SETTLE_S)  # which may have seen it too
    _mourn(index, size)
    os._exit(1)


def _mourn(index: int, size: int) -> None:
    if index == 1:  # one sentence is enough
        print(f"manyworlds: rank 0 of {size} is gone, so all of them end", file=sys.stderr, flush=True)


def _obey(pipe: Connection, ranks: Ranks, load: LoadPart) -> int:
    """Do as one is told until the end, or until one cannot: the exit status. EOFError or OSError if nobody leads."""

    def answer(thing: Answer) -> None:
        Parcel.of(thing).post([pipe], partial(ranks.send, to=0))

    world: Any = None
    while True:
        try:
            verb, arguments = take(pipe, ranks.broadcast)
            if verb == END:
                return 0
            if verb == LOAD:
                world = load(ranks, lambda stage, share: None)
                answer(Done(None))
            else:
                answer(Done(getattr(world, verb)(*arguments)))
        except (ValueError, KeyError) as fault:
            answer(Refused(str(fault)))
        except (EOFError, OSError):
            raise
        except Exception as fault:
            why = str(fault) if isinstance(fault, WorldError) else f"{type(fault).__name__}: {fault}"
            answer(Failed(why, is_cause=not is_peer_lost(fault)))
            return 1

"""Messages between ranks: a small part that goes through a pipe, and large arrays that go beside it. What is not on its
way through the group's exchanges, which have a deadline, fits into a pipe that nobody reads."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL_BYTES = 4096  # an array up to this size stays in the message


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        """Arrays with gaps would stay in the message whatever their size."""
        gaps = isinstance(thing, np.ndarray) and not thing.flags.forc
        return np.ascontiguousarray(thing).__reduce_ex__(5) if gaps else NotImplemented


@dataclass(frozen=True, slots=True)
class _Envelope:
    message: bytes  # pickled
    sizes: tuple[int, ...]  # bytes of each array beside it


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """Anything made of data and numpy arrays, packed."""

    envelope: _Envelope
    bulk: Tensor  # uint8, all arrays end to end

    @classmethod
    def of(cls, thing: Any) -> Parcel:
        views: list[memoryview] = []

        def stays(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes > SMALL_BYTES:
                views.append(view)
            return view.nbytes <= SMALL_BYTES

        small = io.BytesIO()
        _Pickler(small, protocol=5, buffer_callback=stays).dump(thing)
        message = small.getvalue()
        bulk = torch.empty(sum(view.nbytes for view in views), dtype=torch.uint8)
        at, whole = 0, memoryview(bulk.numpy())
        for view in views:
            whole[at : at + view.nbytes] = view
            at += view.nbytes
        return cls(_Envelope(message, tuple(view.nbytes for view in views)), bulk)

    def post(self, pipes: Sequence[Connection], ship: Callable[[Tensor], None]) -> None:
        """The small part into each pipe, the arrays, if there are any, through `ship`. OSError if a reader is gone."""
        small = pickle.dumps(self.envelope)
        for pipe in pipes:
            pipe.send_bytes(small)
        if len(self.bulk):
            ship(self.bulk)


def take(pipe: Connection, receive: Callable[[Tensor], None]) -> Any:
    """What was posted into the other end; `receive` fills a tensor with the arrays. EOFError if there is no other
    end any more."""
    envelope = pickle.loads(pipe.recv_bytes())
    bulk = torch.empty(sum(envelope.sizes), dtype=torch.uint8)
    if len(bulk):
        receive(bulk)
    at, whole, arrays = 0, memoryview(bulk.numpy()), []
    for size in envelope.sizes:
        arrays.append(whole[at : at + size])
        at += size
    return pickle.loads(envelope.message, buffers=arrays)


def peek(pipe: Connection) -> Any:
    """As `take`, but None where arrays would have to be received from somebody who may be gone."""
    envelope = pickle.loads(pipe.recv_bytes())
    return None if envelope.sizes else pickle.loads(envelope.message)

"""Plays one connection: sends its items in pieces of any size, judges what comes back, and leaves in some way."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import trio

from fuzzing.answers import Http1Answers, Http2Answers, WrongAnswerError
from fuzzing.script import Script

ANSWER = 30.0
"""Seconds within which a whole request must be answered."""
STREAM = 1.0
"""Seconds after which an event stream is left that has not ended by itself."""
QUIET = 0.1
"""Seconds of silence after which nothing more is expected of a connection whose framing is broken."""
PIECES = 100
"""Pieces in which an item is sent, at the most: a body that takes long is given up."""
CHUNK = 65536
RESET = struct.pack("ii", 1, 0)


class _LeftError(Exception):
    """Nothing more can be learnt on this connection."""


class Playing:
    """One connection being played."""

    def __init__(self, stream: trio.SocketStream, script: Script, rng: Random, counts: Counter[str]) -> None:
        self.sent = 0
        """Items that were sent before the server ended the connection."""
        self._stream = stream
        self._script = script
        self._rng = rng
        self._http1 = Http1Answers([item.method for item in script.items], counts)
        self._http2 = Http2Answers(counts)
        self._changed = trio.Event()
        self._ended = False
        self._wrong: WrongAnswerError | None = None

    async def run(self) -> None:
        """Send and judge everything.

        Raises:
            WrongAnswerError: The server said what it should not, or did not say what it should.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            nursery.start_soon(self._send_and_leave, nursery.cancel_scope)
        if self._wrong is not None:
            raise self._wrong

    async def _send_and_leave(self, scope: trio.CancelScope) -> None:
        try:
            await self._send()
            if not (self._script.items and self._script.items[-1].whole):
                await self._silence()
            await self._leave()
        except _LeftError:
            pass
        except WrongAnswerError as exc:
            self._wrong = self._wrong or exc
        scope.cancel()

    async def _send(self) -> None:
        one_by_one = self._rng.random() < 0.5
        due = 0
        for item in self._script.items:
            if self._ended:
                break
            if not item.whole:
                await self._answered(due)  # what the server closes with bytes unread is reset, and answers with it
            for piece in self._cut(item.data):
                try:
                    with trio.fail_after(ANSWER):
                        await self._stream.send_all(piece)
                except (trio.BrokenResourceError, trio.TooSlowError):
                    await self._answered(due)  # whole requests are taken and answered, whatever comes after them
                    return
            due += item.whole
            self.sent += 1
            if one_by_one:
                await self._answered(due)
        await self._answered(due)

    def _cut(self, data: bytes) -> Iterator[bytes]:
        """Cut data into pieces that are sent one by one, mostly in one piece."""
        if self._rng.random() < 0.85 or len(data) > 5000:
            yield data
            return
        size = max(self._rng.choice((1, 10, 100)), len(data) // PIECES)
        for at in range(0, len(data), size):
            yield data[at : at + size]

    async def _answered(self, due: int) -> None:
        """Wait until so many answers have come."""
        with trio.move_on_after(STREAM):
            await self._complete(due)
            return
        if self._http1.streaming:
            raise _LeftError
        with trio.move_on_after(ANSWER - STREAM):
            await self._complete(due)
            return
        if self._http1.streaming:
            raise _LeftError
        raise WrongAnswerError(f"no answer to request {self._http1.complete} of the connection in {ANSWER} s")

    async def _complete(self, due: int) -> None:
        while self._http1.complete < due:
            if self._wrong is not None:
                raise _LeftError
            if self._ended:
                done = self._http1.complete
                last = [item.data[:300] for item in self._script.items[max(0, done - 1) : done + 1]]
                raise WrongAnswerError(f"closed after {done} of {due} whole requests, between {last}")
            await self._changed.wait()

    async def _silence(self) -> None:
        """Wait until the server has ended the connection, or has nothing more to say."""
        while not self._ended and self._wrong is None:
            with trio.move_on_after(QUIET) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                return

    async def _leave(self) -> None:
        way = self._rng.random()
        if way < 0.2:
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif way < 0.4:
            try:
                await self._stream.send_eof()
            except trio.BrokenResourceError:
                return
            await self._silence()

    async def _read(self) -> None:
        while not self._ended and self._wrong is None:
            data = b""
            with suppress(trio.BrokenResourceError):
                data = bytes(await self._stream.receive_some(CHUNK))
            try:
                self._judge(data)
            except WrongAnswerError as exc:
                self._wrong = exc
            self._ended = not data
            self._changed.set()
            self._changed = trio.Event()

    def _judge(self, data: bytes) -> None:
        if self._script.http2:
            self._http2.feed(data)
            return
        self._http1.feed(data)
        if self._http1.switched:
            switched, self._http1.switched = self._http1.switched, b""
            self._http2.feed(switched)

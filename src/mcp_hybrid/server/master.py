"""The master over several workers: it replaces those that die, reloads on SIGHUP, and ends them all in order.

It serves nothing itself and imports neither the target nor the protocol. Each worker (`child`) inherits the listening
socket, so that connections wait while workers change, and reads the settings by itself, so that a reload sees new ones.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.routing.modes import Mode
from mcp_hybrid.server.generation import KILLED, Generation, Order
from mcp_hybrid.server.launch import addresses, announce, check_certificate, url
from mcp_hybrid.server.stopping import FORCE_AFTER, FORCED, LINGER, end_by_force_after, terminal_is_gone
from mcp_hybrid.server.worker_process import Worker, WorkerFailedError, WorkerRefusedError
from mcp_hybrid.sessions.seal import fresh_key
from mcp_hybrid.settings import Loaded, Settings, load
from mcp_hybrid.telemetry.logs import configure_logging, flush_logs

UNSHARED: Final = (
    "several workers and no shared backplane: sessions are served by all of them, but the end of a session, answers to "
    "questions, cancellations, resumed streams, the GET stream and session state stay with the worker they are on; "
    "set backplane to a Redis to share them"
)
"""What is said at start where it matters: what does not cross workers, and what to do."""
NOT_RELOADED: Final = "not reloaded; the workers there are stay"
TRIES: Final = 5
"""Failed starts in a row, in one place, after which the master gives up if no worker serves and none has served since;
and deaths of new workers that a reload stands before it is given up."""

_SPARE: Final = 2.0
"""Seconds beyond those after which a worker ends itself by force, before it is killed."""
_LAUNCH: Final = 1.0
"""Seconds for a process that is being started to have inherited the sockets, before they are closed here."""
_LAST: Final = 2 * KILLED
"""Seconds beyond all that, after which the master ends whatever is still there."""

log = structlog.get_logger()


class Master:
    """Keeps workers on a listening socket until it is told to stop.

    The workers themselves are kept by a `Generation`: the current one, and during a reload the one that is to follow.
    """

    def __init__(self, loaded: Loaded, listeners: Sequence[socket.socket]) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._listeners = listeners
        self._key: str | None = None
        self._all: set[Worker] = set()
        self._generations: set[Generation] = set()
        self._current: Generation | None = None
        self._next: tuple[Generation, Settings] | None = None
        """The generation that a reload is starting, and what its settings were read as."""
        self._launching = trio.Lock()
        """Held while a process is started: the sockets that it inherits must not be closed meanwhile."""
        self._tried = False
        """Whether the first workers have all come up, or one has failed to: a SIGHUP that comes before has to wait."""
        self._announced = False
        self._reload_wanted = False
        self._stopping = False
        self._call_off: Callable[[], None] = lambda: None
        self._exit_code = 0
        self._error: ConfigurationError | None = None

    @property
    def _crew(self) -> set[Worker]:
        """Those that serve and are not told to end."""
        return set() if self._current is None else self._current.serving

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit code to leave with is returned.

        Raises:
            ConfigurationError: A worker could not use its settings or its target, at the start.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._share_key(self._settings)
                self._current = self._begin(self._settings)
                async for number in signals:
                    self._obey(signal.Signals(number))
        if self._error is not None:
            raise self._error
        return self._exit_code

    def _obey(self, number: signal.Signals) -> None:
        if self._stopping:
            if number is not signal.SIGHUP:
                self._end_at_once(number)
        elif number is not signal.SIGHUP or terminal_is_gone():
            log.info("stopping", why=number.name, drain_timeout=self._settings.server.drain_timeout)
            self._stop()
        else:
            self._reload_wanted = True
            self._reload_if_wanted()

    # Starting

    def _begin(self, settings: Settings) -> Generation:
        generation = Generation(settings.server.workers, self._launch, self, self._all)
        self._generations.add(generation)
        self._nursery.start_soon(self._run, generation)
        return generation

    async def _run(self, generation: Generation) -> None:
        await generation.run()
        self._generations.discard(generation)

    async def _launch(self) -> Worker:
        start = {"overrides": dict(self._loaded.overrides), "key": self._key, "master": os.getpid()}
        start["config"] = None if self._loaded.config is None else str(self._loaded.config)
        async with self._launching:
            if self._stopping:
                raise WorkerFailedError("the server is stopping")
            return await Worker.start(self._listeners, start)

    # What becomes of workers (`generation.Owner`). Nothing waits in here: what was true when it began still is.

    def complete(self, generation: Generation) -> None:
        """Announce that all serve; if these are the workers of a reload, go over to them."""
        if self._next is not None and generation is self._next[0]:
            self._go_over_to(*self._next)
        if generation is self._current and not self._announced:
            self._announced = self._tried = True
            self._warn()
            runtimes = [worker.runtime for worker in generation.serving]
            announce(self._settings, url(self._settings, self._listeners), runtimes[0] if runtimes else ())
        self._reload_if_wanted()

    def start_failed(self, generation: Generation, error: WorkerFailedError, in_a_row: int) -> None:
        """Go on trying, unless that is of no use."""
        if self._next is not None and generation is self._next[0]:
            self._give_up_reload(str(error))
        elif isinstance(error, WorkerRefusedError) and not self._announced:
            self._error = ConfigurationError(str(error))
            self._stop()
        elif generation is self._current:
            log.error("a worker could not start", why=str(error), in_a_row=in_a_row)
            if not self._crew and in_a_row >= TRIES:
                log.error("giving up: no worker comes up")
                self._exit_code = FORCED
                self._stop()
            else:
                self._tried = True
                self._reload_if_wanted()

    def died(self, generation: Generation, worker: Worker, exit_code: int) -> None:
        """Say so; its generation replaces it. A reload whose workers keep dying is given up."""
        log.error("a worker died; another takes its place", pid=worker.process.pid, exit_code=exit_code)
        if self._next is not None and generation is self._next[0] and generation.deaths >= TRIES:
            self._give_up_reload("its workers die as soon as they serve")

    def ended(self, worker: Worker, exit_code: int) -> None:
        """Note a worker that ended as it was asked to, or did not."""
        if exit_code != 0:
            log.error("a worker did not end in order", pid=worker.process.pid, exit_code=exit_code)
            if self._stopping:
                self._exit_code = FORCED

    # Reloading

    def _reload_if_wanted(self) -> None:
        if self._reload_wanted and self._tried and self._next is None and not self._stopping:
            self._reload_wanted = False
            self._reload()

    def _reload(self) -> None:
        """Start workers with what the settings and the target are now; those there are go once these serve."""
        log.info("reloading")
        try:
            fresh = self._read_again()
        except ConfigurationError as error:
            log.error(NOT_RELOADED, why=str(error))  # noqa: TRY400 - the operator's mistake, not ours
        except Exception:
            log.exception(NOT_RELOADED)
        else:
            self._share_key(fresh)
            self._next = self._begin(fresh), fresh

    def _give_up_reload(self, why: str) -> None:
        if self._next is not None:
            log.error(NOT_RELOADED, why=why)
            self._next[0].end(Order.STOP, self._time_to_stop())
            self._next = None
            self._reload_if_wanted()

    def _read_again(self) -> Settings:
        fresh = load(self._loaded.overrides, config=self._loaded.config).settings
        if addresses(fresh) != addresses(self._settings):
            raise ConfigurationError("addresses and ports cannot change by a reload; restart for that")
        check_certificate(fresh)
        return fresh

    def _go_over_to(self, generation: Generation, fresh: Settings) -> None:
        configure_logging(fresh.log.level, fresh.log.format)
        old = self._current
        self._current, self._settings, self._next = generation, fresh, None
        if old is not None:
            old.end(Order.RETIRE, LINGER + self._time_to_stop())
            self._nursery.start_soon(self._note_reload, old, generation.size)

    async def _note_reload(self, old: Generation, size: int) -> None:
        """Log the reload once the old workers know that they take no more connections: until then they do."""
        await old.told.wait()
        log.info("reloaded", workers=size)

    def _share_key(self, settings: Settings) -> None:
        """Make one key for all workers, if there is to be one and none is configured. It is kept over reloads."""
        if self._key is None and not settings.sessions.keys and settings.mode is not Mode.STATELESS:
            self._key = fresh_key()

    def _warn(self) -> None:
        if self._key is not None:
            log.warning(
                "no sessions.keys configured: sessions end with this process",
                hint="set sessions.keys; `mcp-hybrid session-key` prints a key",
            )
        if self._settings.backplane == "memory" and self._settings.mode is not Mode.STATELESS:
            log.warning(UNSHARED, workers=self._settings.server.workers)

    # Stopping

    def _time_to_stop(self) -> float:
        """Return the seconds in which a worker ends by itself, by force if need be, and some to spare."""
        return self._settings.server.drain_timeout + FORCE_AFTER + _SPARE

    def _stop(self) -> None:
        """Have all workers drain and end, and then end."""
        if self._stopping:
            return
        self._stopping = True
        within = self._time_to_stop()
        self._call_off = end_by_force_after(within + _LAST)
        for generation in self._generations:
            generation.end(Order.STOP, within)
        self._nursery.start_soon(self._finish)

    async def _finish(self) -> None:
        with trio.move_on_after(_LAUNCH):
            await self._launching.acquire()
        for listener in self._listeners:
            listener.close()
        for generation in list(self._generations):
            await generation.gone.wait()
        if self._error is None:
            log.info("stopped")
        self._call_off()
        self._nursery.cancel_scope.cancel()

    def _end_at_once(self, number: signal.Signals) -> None:
        """Die of a second signal, and take everybody along."""
        for worker in self._all:
            worker.process.kill()
        flush_logs()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

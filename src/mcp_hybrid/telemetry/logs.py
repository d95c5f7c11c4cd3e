"""One shape for every log line of the process, ours and the standard library's.

Only processes that are ours call `configure_logging`: `mcp-hybrid` and `mcp_hybrid.asgi`. A program that embeds
`HybridApp` keeps the logging it has.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Final, TextIO

import structlog
from pydantic_core import to_json
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from mcp_hybrid.runtime.hints import hint_for
from mcp_hybrid.settings import LogFormat, LogLevel
from mcp_hybrid.telemetry.log_writer import AT_EXIT, LogWriter
from mcp_hybrid.text import short, short_traceback

QUIET_LOGGERS: Final = ("mcp", "hypercorn")
"""Heard from `warning` up unless we debug: the SDK's info lines quote what tools say of their arguments, and
Hypercorn's repeat the address it listens on."""

_LONGEST: Final = 1024
"""Characters of one field, and of one line of a traceback."""
_LONGEST_EXCEPTION: Final = 16 * 1024


log = structlog.get_logger("mcp_hybrid")


class _Sink:
    """Where all loggers write to.

    One object for the life of the process, so that loggers which are cached follow when the stream is set again. Who
    reads the log must not fail the request that is being logged, nor hold it up: what goes to a descriptor is written
    by `log_writer`, and lines that nobody reads are dropped. What has no descriptor is memory, and is written at once.
    """

    def __init__(self) -> None:
        self._stream: TextIO | None = None
        self._writer = LogWriter()
        self._lock = threading.RLock()  # tools and libraries log from worker threads too
        self._use(_nowhere)

    def _use(self, write: Callable[[str], None]) -> None:
        self.msg = self.log = self.debug = self.info = self.warning = self.error = self.critical = write

    def write_to(self, stream: TextIO | None, report: Callable[[int], str]) -> None:
        """Write to `stream` from now on."""
        self._stream = stream
        if stream is None:
            self._use(_nowhere)
        elif _has_descriptor(stream):
            self._writer.write_to(stream, report)
            self._use(self._writer.write)
        else:
            self._use(self._to_memory)

    def on_drop(self, hook: Callable[[], None]) -> None:
        """Have `hook` called for each line that is dropped."""
        self._writer.on_drop(hook)

    def flush(self, timeout: float) -> None:
        """Wait until the lines so far are written, at most so many seconds."""
        self._writer.flush(timeout)

    def _to_memory(self, line: str) -> None:
        with self._lock, suppress(OSError, ValueError):  # ValueError: the stream is closed
            if self._stream is not None:
                self._stream.write(line + "\n")


def _nowhere(line: str) -> None:
    pass


def _has_descriptor(stream: TextIO) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError):
        return False
    return True


_SINK: Final = _Sink()
_PROCESSORS: Final[list[Processor]] = []  # changed in place, for cached loggers too


class _Handler(logging.Handler):
    """The standard library's way to the sink."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _SINK.msg(self.format(record))
        except Exception as exc:  # noqa: BLE001 - logging's contract: a record that cannot be formatted fails nobody
            # `handleError` would print it, and wait for whoever reads that.
            log.error("a log record could not be formatted", logger=record.name, why=type(exc).__name__)  # noqa: TRY400


_HANDLER: Final = _Handler()


class _WithoutOwnHandler(logging.Filter):
    """Takes the console handler from Hypercorn's logger, which its command line sets after it imported the app.

    The level that it sets as well (its `--log-level`) stays: who starts Hypercorn by hand wants to hear where it runs.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        logger = logging.getLogger(record.name)
        logger.handlers = [handler for handler in logger.handlers if type(handler) is not logging.StreamHandler]
        return True


_HYPERCORNS_LOGGER: Final = "hypercorn.error"
_HYPERCORNS_FILTER: Final = _WithoutOwnHandler()


def configure_logging(
    level: LogLevel,
    format: LogFormat,  # noqa: A002 - the setting's name
    stream: TextIO | None = None,
) -> None:
    """Send every log line of this process to `stream` (default: standard error) in one format.

    May be called again, and the last call counts; only a logger that has been used already keeps its level.
    """
    stream = sys.stderr if stream is None else stream  # None, too, if it was closed before the process started
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp,
        _exceptions,
        _bounded,
    ]
    rendering = _rendering(format, stream)
    _SINK.write_to(stream, partial(_missing, rendering))
    _PROCESSORS[:] = [*shared, *rendering]
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_sink,
        cache_logger_on_first_use=True,
    )
    _configure_standard_library(threshold, shared, rendering)


def take_over_consoles() -> None:
    """Have the loggers of the program that is served write to this log, if it is JSON, and no longer print themselves.

    A handler that prints (the standard library's, Rich's, FastMCP's) would put lines of another form among ours. It is
    removed from its logger, whose lines go to this log instead. Handlers that write elsewhere, to a file say, stay, and
    so does what a program prints without `logging`. For processes that are ours, once the program is loaded, and again
    once it has started.
    """
    if _PROCESSORS[-1:] != [_as_json]:
        return
    loggers = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    for logger in loggers:
        others = [handler for handler in logger.handlers if not _prints(handler)]
        if len(others) < len(logger.handlers):
            logger.handlers, logger.propagate = others, True
    root = logging.getLogger()
    kept = [handler for handler in root.handlers if not _prints(handler)]
    root.handlers = kept if _HANDLER in kept else [*kept, _HANDLER]  # `basicConfig(force=True)` removes it


def _prints(handler: logging.Handler) -> bool:
    """Whether a handler writes to standard output or standard error."""
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)  # or Rich's
    return stream is not None and stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}


def take_over_process() -> None:
    """Log what Python itself would print: exceptions that nobody caught, in any thread, and warnings.

    Printing waits for whoever reads it. For processes that are ours, after `configure_logging`.
    """
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_ignored
    threading.excepthook = _log_uncaught_in_thread
    logging.captureWarnings(capture=True)


def flush_logs(timeout: float = AT_EXIT) -> None:
    """Wait until the lines so far are written, at most `timeout` seconds. For what ends the process or prints."""
    _SINK.flush(timeout)


def on_dropped_line(hook: Callable[[], None]) -> None:
    """Have `hook` called for each line that is dropped because nobody reads the log. It must not log."""
    _SINK.on_drop(hook)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        flush_logs()
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("the process ends: an exception was not caught", exc_info=error)
        flush_logs()


def _log_ignored(ignored: sys.UnraisableHookArgs) -> None:
    if ignored.exc_value is not None:
        log.error("an exception was ignored", why=ignored.err_msg, at=_name(ignored.object), exc_info=ignored.exc_value)


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        thread = None if args.thread is None else args.thread.name
        log.error("a thread ended: an exception was not caught", thread=thread, exc_info=args.exc_value)


def _name(thing: object) -> str:
    """Return the name of what an exception came from. Its `repr` may show values."""
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


def _missing(rendering: list[Processor], lines: int) -> str:
    """Return the line that stands for lines that were dropped."""
    event: EventDict = {"event": "log lines were dropped: the log was not read", "level": "warning", "lines": lines}
    text: Any = _stamp(None, "warning", event)
    for render in rendering:
        text = render(None, "warning", text)
    return str(text)


def _sink(*_: object) -> _Sink:
    return _SINK


def _configure_standard_library(threshold: int, shared: list[Processor], rendering: list[Processor]) -> None:
    _HANDLER.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if each is not _HANDLER] + [_HANDLER]
    root.setLevel(threshold)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(threshold if threshold == logging.DEBUG else max(threshold, logging.WARNING))
    hypercorns = logging.getLogger(_HYPERCORNS_LOGGER)
    hypercorns.setLevel(logging.NOTSET)  # one that an earlier server of this process has set
    hypercorns.addFilter(_HYPERCORNS_FILTER)


def _rendering(form: LogFormat, stream: TextIO | None) -> list[Processor]:
    terminal = stream is not None and stream.isatty()
    if form is LogFormat.JSON or (form is LogFormat.AUTO and not terminal):
        return [_as_json]
    colors = terminal and "NO_COLOR" not in os.environ
    # plain_traceback: the default prints every local variable, which is where arguments and secrets are
    return [_printable, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]


def _stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say when: UTC, to the microsecond (RFC 3339). structlog's own takes five times as long."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    event["timestamp"] = f"{_second(seconds)}.{nanoseconds // 1000:06}Z"
    return event


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    """Return a second's date and time. Most lines are of the same second as the one before."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _exceptions(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Give faults of ours their traceback; below that level an exception is one line."""
    info = event.pop("exc_info", None)
    if not info:
        return event
    if isinstance(info, BaseException):
        error: BaseException | None = info
    else:
        error = (info if isinstance(info, tuple) else sys.exc_info())[1]
    if error is None:
        return event
    if (hint := hint_for(error)) is not None:
        event.setdefault("hint", hint)
    if event["level"] in {"error", "critical"}:
        event["exception"] = "".join(traceback.format_exception(error)).rstrip()
    else:
        event.setdefault("error", " ".join(traceback.format_exception_only(error)[-1].split()))
    return event


def _bounded(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut what is long: names, texts and exceptions quote what a stranger sent, and the log is no place to keep it."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _LONGEST:
            event[key] = (
                short_traceback(value, _LONGEST_EXCEPTION, _LONGEST) if key == "exception" else short(value, _LONGEST)
            )
    return event


def _as_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    ordered = {"timestamp": event.pop("timestamp"), "level": event.pop("level"), "event": event.pop("event"), **event}
    try:
        return to_json(ordered, inf_nan_mode="strings", bytes_mode="base64", fallback=repr).decode()
    except ValueError:  # text that is not Unicode (a lone surrogate), which only the slower encoder escapes
        return json.dumps(ordered, default=repr)


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what would move a terminal's cursor or start a line of its own: names in a request are a stranger's."""
    for key, value in event.items():
        if key != "exception" and isinstance(value, str) and not value.isprintable():
            event[key] = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value)
    return event

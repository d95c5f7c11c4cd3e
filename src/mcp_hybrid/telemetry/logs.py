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
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TextIO

import structlog
from pydantic_core import to_json
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from mcp_hybrid.settings import LogFormat, LogLevel
from mcp_hybrid.text import short, short_traceback

QUIET_LOGGERS: Final = ("mcp", "hypercorn")
"""Heard from `warning` up unless we debug: the SDK's info lines quote what tools say of their arguments, and
Hypercorn's repeat the address it listens on."""

_LONGEST: Final = 1024
"""Characters of one field, and of one line of a traceback."""
_LONGEST_EXCEPTION: Final = 16 * 1024


class _Sink:
    """The stream that all loggers write to.

    One object for the life of the process, so that loggers which are cached follow when the stream is set again. A
    reader of the log that has gone away must not fail the request that is being logged: such lines are lost.
    """

    def __init__(self) -> None:
        self.stream: TextIO | None = None
        self._lock = threading.Lock()  # tools and libraries log from worker threads too

    def msg(self, line: str) -> None:
        if self.stream is None:
            return
        with self._lock:
            try:
                self.stream.write(line + "\n")
                self.stream.flush()
            except (OSError, ValueError):  # ValueError: the stream is closed
                pass

    log = debug = info = warning = error = critical = exception = msg


_SINK: Final = _Sink()
_PROCESSORS: Final[list[Processor]] = []  # changed in place, for cached loggers too


class _Handler(logging.Handler):
    """The standard library's way to the sink; a class of its own so that a second configuration finds it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _SINK.msg(self.format(record))
        except Exception:  # noqa: BLE001 - logging's contract: a record that cannot be formatted fails nobody
            self.handleError(record)


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
    _SINK.stream = sys.stderr if stream is None else stream
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp,
        _exceptions,
        _bounded,
    ]
    rendering = _rendering(format, _SINK.stream)
    _PROCESSORS[:] = [*shared, *rendering]
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_sink,
        cache_logger_on_first_use=True,
    )
    _configure_standard_library(threshold, shared, rendering)


def _sink(*_: object) -> _Sink:
    return _SINK


def _configure_standard_library(threshold: int, shared: list[Processor], rendering: list[Processor]) -> None:
    handler = _Handler()
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [each for each in root.handlers if not isinstance(each, _Handler)] + [handler]
    root.setLevel(threshold)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(threshold if threshold == logging.DEBUG else max(threshold, logging.WARNING))
    hypercorns = logging.getLogger(_HYPERCORNS_LOGGER)
    hypercorns.setLevel(logging.NOTSET)  # one that an earlier server of this process has set
    hypercorns.addFilter(_HYPERCORNS_FILTER)


def _rendering(form: LogFormat, stream: TextIO) -> list[Processor]:
    terminal = stream.isatty()
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

"""One shape for all log lines, whoever writes them."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from hypercorn.config import Config
from hypercorn.logging import Logger as HypercornLogger

from harness.mcp import headers, tool
from harness.process import POLL, command, free_port
from mcp_hybrid.settings import LogFormat, LogLevel
from mcp_hybrid.telemetry import logs
from mcp_hybrid.telemetry.logs import configure_logging

NAMES = ("", "mcp", "hypercorn", "hypercorn.error", "elsewhere")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_COLOR", "1")
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.handlers, logger.filters) for logger in loggers]
    yield
    for logger, (level, handlers, filters) in zip(loggers, before, strict=True):
        logger.level, logger.handlers, logger.filters = level, handlers, filters
        logger.manager._clear_cache()  # type: ignore[attr-defined] # levels were set behind its back
    structlog.reset_defaults()
    logs._SINK.write_to(None, str)


def configured(level: LogLevel = LogLevel.INFO, form: LogFormat = LogFormat.JSON, **more: Any) -> io.StringIO:
    stream: io.StringIO = more.get("stream", io.StringIO())
    configure_logging(level, form, stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail() -> None:
    raise ValueError("first\nsecond")


def failing(log: Any, method: str) -> None:
    secret_local = "do not show"  # noqa: F841 - what a traceback must not print
    try:
        fail()
    except ValueError:
        getattr(log, method)("failed", exc_info=True)


def test_our_lines_are_json_with_the_time_in_utc() -> None:
    stream = configured()
    structlog.get_logger().info("served", route="session", status=200)
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert (line["level"], line["event"], line["route"], line["status"]) == ("info", "served", "session", 200)
    stamp = datetime.fromisoformat(line["timestamp"])
    assert stamp.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - stamp) < timedelta(minutes=1)


def test_the_standard_librarys_lines_look_the_same_and_name_their_logger() -> None:
    stream = configured()
    logging.getLogger("elsewhere").warning("took %d s", 3)
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["logger"]) == ("warning", "took 3 s", "elsewhere")
    assert "_record" not in line


def test_context_variables_are_on_both_kinds_of_line() -> None:
    stream = configured()
    with structlog.contextvars.bound_contextvars(request="r1"):
        structlog.get_logger().info("ours")
        logging.getLogger("elsewhere").info("theirs")
    assert [line["request"] for line in lines(stream)] == ["r1", "r1"]


def test_lines_below_the_level_are_not_written() -> None:
    stream = configured(LogLevel.WARNING)
    structlog.get_logger().info("ours")
    logging.getLogger("elsewhere").info("theirs")
    assert lines(stream) == []


def test_the_sdk_and_hypercorn_are_heard_from_warning_up() -> None:
    stream = configured()
    for name in ("mcp.server", "hypercorn.error"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("trouble")
    assert [line["event"] for line in lines(stream)] == ["trouble", "trouble"]


def test_the_sdk_and_hypercorn_are_heard_whole_when_debugging() -> None:
    stream = configured(LogLevel.DEBUG)
    for name in ("mcp.server", "hypercorn.error"):
        logging.getLogger(name).debug("chatter")
    assert [line["event"] for line in lines(stream)] == ["chatter", "chatter"]


def test_a_level_that_hypercorn_has_set_before_does_not_count() -> None:
    HypercornLogger(Config())
    stream = configured()
    logging.getLogger("hypercorn.error").info("chatter")
    assert lines(stream) == []


def test_configuring_twice_writes_each_line_once_and_the_last_stream_counts() -> None:
    first = configured()
    log = structlog.get_logger()
    log.info("early")
    second = configured()
    log.info("ours")
    logging.getLogger("elsewhere").info("theirs")
    assert [line["event"] for line in lines(first)] == ["early"]
    assert [line["event"] for line in lines(second)] == ["ours", "theirs"]


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_an_error_has_its_traceback_without_local_variables(name: str) -> None:
    stream = configured()
    failing(structlog.get_logger() if name == "ours" else logging.getLogger("elsewhere"), "error")
    (line,) = lines(stream)
    assert "Traceback (most recent call last)" in line["exception"]
    assert "ValueError: first\nsecond" in line["exception"]
    assert "do not show" not in stream.getvalue()


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_an_exception_below_error_is_one_line(name: str) -> None:
    stream = configured()
    failing(structlog.get_logger() if name == "ours" else logging.getLogger("elsewhere"), "warning")
    (line,) = lines(stream)
    assert line["error"] == "ValueError: first second"
    assert "exception" not in line


def test_values_that_json_does_not_know_are_written_all_the_same() -> None:
    stream = configured()
    structlog.get_logger().info("odd", a={1, 2}, b=object, c=float("nan"), d=b"\xff", e="\ud800")
    structlog.get_logger().info("odd", b=object(), c=float("inf"), d=b"\xff")
    assert [line["event"] for line in lines(stream)] == ["odd", "odd"]


def test_auto_is_console_on_a_terminal_and_json_elsewhere() -> None:
    terminal = configured(form=LogFormat.AUTO, stream=Terminal())
    structlog.get_logger().info("hello", a=1)
    assert "[info     ] hello" in terminal.getvalue()
    elsewhere = configured(form=LogFormat.AUTO)
    structlog.get_logger("fresh").info("hello")
    assert lines(elsewhere)[0]["event"] == "hello"


def test_a_stranger_cannot_start_a_line_or_move_the_cursor_on_the_console() -> None:
    stream = configured(form=LogFormat.CONSOLE)
    structlog.get_logger().info("served", tool="a\nb\x1b[2J\u202e", greeting="grüß")
    logging.getLogger("elsewhere").info("got %s", "x\ny")
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()
    assert "\u202e" not in stream.getvalue()
    assert "grüß" in stream.getvalue()


def test_a_console_traceback_keeps_its_lines() -> None:
    stream = configured(form=LogFormat.CONSOLE)
    failing(structlog.get_logger(), "error")
    assert "\nTraceback (most recent call last):\n" in stream.getvalue()


def test_a_log_that_nobody_reads_any_more_fails_nobody() -> None:
    stream = configured()
    stream.close()
    structlog.get_logger().error("into the void")
    logging.getLogger("elsewhere").error("into the void")


def test_hypercorns_own_handler_does_not_write_the_line_a_second_time(capsys: pytest.CaptureFixture[str]) -> None:
    stream = configured()
    HypercornLogger(Config())  # what its command line does once the app is imported
    logging.getLogger("hypercorn.error").info("once")
    assert [line["event"] for line in lines(stream)] == ["once"]
    assert capsys.readouterr().err == ""


PRINTING = """\
import logging, sys, warnings
from contextlib import asynccontextmanager
from fastmcp import FastMCP
from fastmcp.utilities.logging import get_logger
from rich.console import Console
from rich.logging import RichHandler

@asynccontextmanager
async def lifespan(server):
    logging.getLogger("late").addHandler(logging.StreamHandler())
    logging.getLogger("late").propagate = False
    yield

logging.basicConfig(force=True, level=logging.INFO, format="plain %(message)s")
logging.getLogger("rich").addHandler(RichHandler(console=Console(stderr=True)))
logging.getLogger("file").addHandler(logging.FileHandler(sys.argv[-1]))
server = FastMCP("printing", lifespan=lifespan)

@server.tool
def speak() -> str:
    for name in ("plain", "rich", "late", "file"):
        logging.getLogger(name).warning("from %s", name)
    get_logger("its own").warning("from fastmcp")
    warnings.warn("from warnings")
    print("printed")
    return "spoken"
"""


@pytest.mark.process
def test_a_program_that_prints_its_log_lines_has_them_in_json(tmp_path: Path) -> None:
    target, file, port = tmp_path / "printing.py", tmp_path / "file.log", free_port()
    target.write_text(PRINTING.replace("sys.argv[-1]", repr(str(file))))
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        argv = [*command("mcp-hybrid"), "serve", str(target), "--port", str(port)]
        server = subprocess.Popen(argv, stdout=out, stderr=err, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        try:
            while '"serving"' not in (tmp_path / "err").read_text():
                assert server.poll() is None, (tmp_path / "err").read_text()
                time.sleep(POLL)
            answer = httpx2.post(f"http://127.0.0.1:{port}/mcp", json=tool("speak"), headers=headers(None), timeout=60)
            assert "spoken" in answer.text
        finally:
            server.terminate()
            server.wait()
    logged = [json.loads(line) for line in (tmp_path / "err").read_text().splitlines()]
    said = [line["event"] for line in logged if line["event"].startswith("from ")]
    assert sorted(said) == ["from fastmcp", "from file", "from late", "from plain", "from rich"]
    assert any("from warnings" in line["event"] for line in logged)
    assert (tmp_path / "out").read_text() == "printed\n"
    assert file.read_text() == "from file\n"


def test_on_a_terminal_a_program_keeps_the_handlers_that_it_has() -> None:
    configured(form=LogFormat.AUTO, stream=Terminal())
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("elsewhere")
    logger.addHandler(handler)
    logs.take_over_consoles()
    assert logger.handlers == [handler]
    configured(form=LogFormat.JSON)
    logs.take_over_consoles()
    assert logger.handlers == []

"""A log that nobody reads holds nobody up; what is missing is said, and the last lines are written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import httpx2
import pytest

from harness.mcp import headers, tool
from harness.process import command, free_port
from mcp_hybrid.settings import LogFormat
from mcp_hybrid.telemetry import log_writer, logs
from mcp_hybrid.telemetry.log_writer import LogWriter

ENOUGH = 60.0
"""Seconds for a thread to do what it does at once."""


class Pipe:
    """A pipe whose reader reads when it is asked to."""

    def __init__(self) -> None:
        self.reader, number = os.pipe()
        self.stream: TextIO = os.fdopen(number, "w")

    def read(self, writer: LogWriter) -> list[str]:
        """Read all that is there and comes until the writer has nothing more to write."""
        data = b""
        os.set_blocking(self.reader, False)
        while True:
            done = writer.flush(0.01)
            while piece := self._some():
                data += piece
            if done:
                return data.decode().splitlines()

    def _some(self) -> bytes:
        try:
            return os.read(self.reader, 1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reader)
    made.stream.close()


@pytest.fixture
def writer(pipe: Pipe) -> LogWriter:
    made = LogWriter()
    made.write_to(pipe.stream, "{} missing".format)
    return made


def test_lines_are_written_in_order_without_being_asked_for(pipe: Pipe, writer: LogWriter) -> None:
    for number in range(500):
        writer.write(f"line {number}")
    assert pipe.read(writer) == [f"line {number}" for number in range(500)]


def test_lines_nobody_reads_are_dropped_counted_and_named_in_place(pipe: Pipe, writer: LogWriter) -> None:
    dropped: list[None] = []
    writer.on_drop(lambda: dropped.append(None))
    line = "x" * 1000
    number = 0
    while not dropped:  # a caller that waited for the reader would never come back
        writer.write(f"{number} {line}")
        number += 1
    for _ in range(99):
        writer.write("more")
    assert number * len(line) > log_writer.LONGEST_QUEUE / 2
    read = pipe.read(writer)
    writer.write("last")
    read += pipe.read(writer)
    kept = [each.split()[0] for each in read if each.endswith(line)]
    assert kept == [str(each) for each in range(number - 1)]
    assert read[len(kept) :] == ["100 missing", "last"]
    assert len(dropped) == 100


def test_a_reader_that_has_gone_or_a_closed_stream_fails_nobody(pipe: Pipe, writer: LogWriter) -> None:
    os.close(pipe.reader)
    writer.write("to nobody")
    assert writer.flush(ENOUGH)
    pipe.reader = os.open(os.devnull, os.O_RDONLY)
    pipe.stream.close()
    writer.write("to nothing")
    assert writer.flush(ENOUGH)


def test_a_long_line_and_one_that_is_not_unicode_are_written_whole(pipe: Pipe, writer: LogWriter) -> None:
    long = "ü" * 50_000
    writer.write("first")
    writer.write(long)
    writer.write("\ud800")
    assert pipe.read(writer) == ["first", long, "\\ud800"]


def test_a_finalizer_that_logs_while_a_line_is_queued_does_not_wait(pipe: Pipe, writer: LogWriter) -> None:
    with writer._lock:
        writer.write("from within")
    assert pipe.read(writer) == ["from within"]


def test_a_finalizer_that_logs_in_the_new_thread_does_not_hold_its_start(
    pipe: Pipe, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def logs_first(thread: threading.Thread) -> None:
        if thread.name != "log writer":
            start(thread)
            return
        finalizer = threading.Thread(target=writer.write, args=("from a finalizer",))
        finalizer.start()
        finalizer.join(ENOUGH)
        assert not finalizer.is_alive()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", logs_first)
    writer.write("the first line")
    assert pipe.read(writer) == ["the first line", "from a finalizer"]


@pytest.mark.process
def test_a_forked_process_writes_its_own_lines_and_not_its_parents() -> None:
    program = (
        "import os, sys; from mcp_hybrid.telemetry.log_writer import LogWriter\n"
        "writer = LogWriter(); writer.write_to(sys.stderr, str); writer.write('parent')\n"
        "child = os.fork()\n"
        "if child == 0: writer.write('child'); writer.flush(60); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert sorted(done.stderr.split()) == ["child", "parent"]


def run(program: str) -> list[dict[str, Any]]:
    """Run a program whose log is ours; give its lines."""
    start = (
        "import sys, structlog, logging, threading, warnings; from mcp_hybrid.telemetry import logs\n"
        "logs.configure_logging(logs.LogLevel.INFO, logs.LogFormat.JSON); logs.take_over_process()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + program], capture_output=True, text=True, timeout=120, check=False
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "exception"),
    [
        ("raise RuntimeError('lost')", "RuntimeError: lost"),
        ("t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()", "ZeroDivisionError"),
        ("class A:\n def __del__(self): raise ValueError('late')\nA()", "ValueError: late"),
    ],
)
def test_an_exception_that_python_would_print_is_a_line_of_the_log(program: str, exception: str) -> None:
    *_, last = run(f"structlog.get_logger().info('before')\n{program}")
    assert exception in last["exception"]


@pytest.mark.process
def test_the_last_lines_before_an_end_are_written_and_warnings_are_too() -> None:
    lines = run("warnings.warn('old'); structlog.get_logger().info('bye')")
    assert "UserWarning: old" in lines[0]["event"]
    assert lines[-1]["event"] == "bye"


@pytest.mark.process
def test_a_record_that_cannot_be_formatted_is_a_line_and_prints_nothing() -> None:
    (line,) = run("logging.getLogger('elsewhere').warning('%d', 'no number')")
    assert (line["event"], line["logger"]) == ("a log record could not be formatted", "elsewhere")


def test_the_line_about_missing_ones_is_like_the_others(pipe: Pipe) -> None:
    rendering = logs._rendering(LogFormat.JSON, pipe.stream)
    line = json.loads(logs._missing(rendering, 7))
    assert (line["level"], line["lines"]) == ("warning", 7)
    assert line["timestamp"].endswith("Z")


@pytest.mark.process
def test_a_server_whose_log_nobody_reads_serves_and_ends() -> None:
    unread, theirs = os.pipe()
    port = free_port()
    environ = {**os.environ, "MCP_HYBRID_LOG__LEVEL": "debug"}
    process = subprocess.Popen(
        [*command("mcp-hybrid"), "serve", "--port", str(port)], env=environ, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        wait_until_it_answers(port)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=ENOUGH) as client:
            for _ in range(600):  # 64 KiB fit into the pipe
                assert client.post("/mcp", json=tool("add", {"a": 1, "b": 2}), headers=headers()).status_code == 200
            assert client.get("/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENOUGH) == 0
    finally:
        process.kill()
        process.wait()
        os.close(unread)


def wait_until_it_answers(port: int) -> None:
    transport = httpx2.HTTPTransport(retries=0)
    with httpx2.Client(transport=transport) as client:
        while True:
            try:
                if client.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                    return
            except httpx2.TransportError:
                continue


@pytest.mark.process
@pytest.mark.parametrize("workers", ["1", "2"])
def test_closed_standard_streams_become_no_sockets(workers: str) -> None:
    port = free_port()
    serving = " ".join([*command("mcp-hybrid"), "serve", "--port", str(port), "--workers", workers])
    process = subprocess.Popen(["/bin/sh", "-c", f"exec {serving} <&- >&- 2>&-"])
    try:
        wait_until_it_answers(port)
        children = [Path(each) for each in Path(f"/proc/{process.pid}/task").glob("*/children")]
        pids = [process.pid, *(int(pid) for each in children for pid in each.read_text().split())]
        for pid in pids:
            for number in range(3):
                assert str(Path(f"/proc/{pid}/fd/{number}").readlink()) == os.devnull
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENOUGH) == 0
    finally:
        process.kill()
        process.wait()

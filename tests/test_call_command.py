"""`mcp-hybrid call` against the demo in a real process: what it shows by each route, its questions, its exit codes."""

from __future__ import annotations

import io
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from mcp_types import ElicitRequestFormParams, ElicitResult
from pydantic_core import from_json
from rich.console import Console
from typer.testing import CliRunner

from harness.process import ServerProcess, command, free_port, serve
from harness.terminal import CTRL_D, Terminal
from mcp_hybrid.cli import app
from mcp_hybrid.client.form import ask

WITHHELD = "no progress: this call was served without a session (route: stateless; progress=withheld)"
PROTOCOLS = pytest.mark.parametrize("protocol", ["legacy", "modern"])


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    with serve() as process:
        yield process


def call(url: str, *arguments: str) -> tuple[int, str, list[str]]:
    """Call without a terminal; give the exit code, the output, and the lines of standard error."""
    done = CliRunner().invoke(app, ["call", url, *arguments], env={"MCP_TOKEN": None})
    return done.exit_code, done.stdout, done.stderr.splitlines()


def at_a_terminal(url: str, *arguments: str) -> Terminal:
    return Terminal([*command("mcp-hybrid"), "call", url, *arguments])


# The route


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "route"),
    [
        ([], "session"),
        (["--protocol", "legacy"], "session"),
        (["--protocol", "modern"], "modern"),
        (["--protocol", "auto"], "modern"),
        (["--protocol", "modern", "--no-session"], "modern"),
    ],
)
def test_progress_comes_on_the_route_that_was_asked_for(demo: ServerProcess, options: list[str], route: str) -> None:
    before = len(demo.log)
    answered = call(demo.url, "countdown", "steps=2", "delay=0.1", *options)
    assert answered == (0, "lift-off\n", ["progress 1/2 1 to go", "progress 2/2 0 to go"])
    demo.wait_for_log('"tool":"countdown"', since=before)
    (line,) = [from_json(line) for line in demo.log[before:].splitlines() if '"tool":"countdown"' in line]
    assert (line["route"], line["status"]) == (route, 200)


@pytest.mark.process
def test_without_a_session_it_says_plainly_that_the_route_gives_no_progress(demo: ServerProcess) -> None:
    before = len(demo.log)
    answered = call(demo.url, "countdown", "steps=2", "delay=0.1", "--no-session")
    assert answered == (0, "lift-off\n", [WITHHELD])
    assert '"route":"session"' not in "".join(
        line for line in demo.log[before:].splitlines() if '"method":"initialize"' not in line
    ), "a request echoed the session id"


# Questions


@pytest.mark.process
@PROTOCOLS
def test_a_question_is_declined_where_there_is_no_terminal_to_ask_on(demo: ServerProcess, protocol: str) -> None:
    answered = call(demo.url, "ask_name", "--protocol", protocol)
    declined = "declined, as there is no terminal to ask on: Who is there?"
    assert answered == (0, "Hello, whoever you are.\n", [declined])


@pytest.mark.process
@PROTOCOLS
def test_a_question_is_asked_at_a_terminal_and_answered(demo: ServerProcess, protocol: str) -> None:
    with at_a_terminal(demo.url, "ask_name", "--protocol", protocol) as terminal:
        terminal.until("Who is there? (ctrl-D declines)")
        terminal.until("What should I call you?")
        terminal.type("\n")
        terminal.until("an answer is needed")
        terminal.until("What should I call you?")
        terminal.type("Ada\n")
        terminal.until("Hello, Ada.")
        assert terminal.ended() == 0


@pytest.mark.process
def test_the_end_of_the_input_declines_a_question(demo: ServerProcess) -> None:
    with at_a_terminal(demo.url, "ask_name") as terminal:
        terminal.until("What should I call you?")
        terminal.type(CTRL_D)
        terminal.until("Hello, whoever you are.")
        assert terminal.ended() == 0


FIELDS: list[tuple[dict[str, Any], str, object]] = [
    ({"type": "string"}, "Ada\n", "Ada"),
    ({"type": "string", "default": "Bob"}, "\n", "Bob"),
    ({"type": "string", "enum": ["red", "blue"]}, "green\nblue\n", "blue"),
    ({"type": "string", "oneOf": [{"const": "r", "title": "Red"}]}, "x\nr\n", "r"),
    ({"type": "integer"}, "seven\n7\n", 7),
    ({"type": "number"}, "0.5\n", 0.5),
    ({"type": "boolean"}, "y\n", True),
    ({"type": "boolean"}, "\n", False),
    ({"type": "boolean", "default": True}, "\n", True),
    ({"type": "array", "items": {"type": "string", "enum": ["a", "b", "c"]}}, "a, z\na, c\n", ["a", "c"]),
    ({"type": "array", "items": {"anyOf": [{"const": "a"}]}}, "\n", []),
]


def answer(schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch, typed: str) -> ElicitResult:
    """Answer a form by what is typed."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    params = ElicitRequestFormParams(message="?", requested_schema=schema)
    return ask(Console(file=io.StringIO()), params)


@pytest.mark.parametrize(("field", "typed", "value"), FIELDS)
def test_a_field_is_asked_for_until_what_is_typed_fits_it(
    field: dict[str, Any], typed: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"type": "object", "properties": {"it": field}, "required": ["it"]}
    assert answer(form, monkeypatch, typed) == ElicitResult(action="accept", content={"it": value})


@pytest.mark.parametrize(
    "field",
    [
        {"type": "string"},
        {"type": "string", "enum": ["red"]},
        {"type": "integer"},
        {"type": "array", "items": {"enum": ["a"]}},
    ],
)
def test_an_optional_field_is_left_out_by_typing_nothing(
    field: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"type": "object", "properties": {"it": field}}
    assert answer(form, monkeypatch, "\n") == ElicitResult(action="accept", content={})


def test_the_end_of_the_input_within_a_form_declines_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    form = {"type": "object", "properties": {"one": {"type": "string"}, "two": {"type": "string"}}}
    assert answer(form, monkeypatch, "1\n") == ElicitResult(action="decline")


# How it ends


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["coutndown"], 2, "error: the server has no tool 'coutndown': did you mean 'countdown'?"),
        (["add", "a"], 2, "error: 'a' is not an argument: write key=value"),
        (["add", "a=1", "b=2", "--protocol", "old"], 2, "mcp-hybrid: --protocol: 'old' is not accepted"),
        (["countdown", "steps=0"], 1, "Error executing tool countdown"),
        (["ask_name", "--no-session"], 1, "error: Cannot ask the client (elicitation/create)"),
    ],
)
def test_the_exit_code_tells_a_mistake_here_from_a_failure_there(
    demo: ServerProcess, arguments: list[str], code: int, told: str
) -> None:
    ended, output, lines = call(demo.url, *arguments)
    assert (ended, output) == (code, "")
    assert lines[0].startswith(told)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.process
def test_an_address_without_an_endpoint_is_told_with_its_status(demo: ServerProcess) -> None:
    url = demo.url.replace("/mcp", "/other")
    code, output, (line,) = call(url, "add", "a=1", "b=2")
    assert (code, output) == (1, "")
    assert line.endswith(f"(HTTP 404 from {url})")


@pytest.mark.process
def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}/mcp"
    assert call(url, "add") == (1, "", [f"error: cannot connect to {url}: is a server running there?"])


@pytest.mark.process
@pytest.mark.parametrize(
    ("content_type", "told"),
    [
        (None, "error: the connection to {url} broke ("),
        ("text/html", "error: Unexpected content type: text/html"),
        ("application/json", "error: {url} did not answer as an MCP server does ("),
    ],
)
def test_what_is_no_mcp_server_is_told_in_one_line(content_type: str | None, told: str) -> None:
    with something_else(content_type) as url:
        code, output, (line,) = call(url, "add")
    assert (code, output) == (1, "")
    assert line.startswith(told.format(url=url))


@pytest.mark.process
def test_ctrl_c_stops_a_call_that_runs(demo: ServerProcess) -> None:
    process = subprocess.Popen(
        [*command("mcp-hybrid"), "call", demo.url, "countdown", "steps=600", "delay=0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == "progress 1/600 599 to go\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert errors.splitlines()[-1] == "stopped"
    assert "Traceback" not in errors


@pytest.mark.process
def test_ctrl_c_stops_a_call_that_waits_for_an_answer(demo: ServerProcess) -> None:
    with at_a_terminal(demo.url, "ask_name") as terminal:
        terminal.until("What should I call you?")
        terminal.interrupt()
        terminal.until("stopped")
        assert terminal.ended() == 130
    assert "Traceback" not in terminal.shown


@contextmanager
def something_else(content_type: str | None) -> Iterator[str]:
    """A web server that knows nothing of MCP; without a content type, one that hangs up on everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if content_type is not None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-type", content_type)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/mcp"
        finally:
            server.shutdown()
            thread.join()

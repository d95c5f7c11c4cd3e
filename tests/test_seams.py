"""Contract tests: the seams of the SDK that its guides do not describe, and this server stands on.

Each names what the code relies on. When one fails after an upgrade, the code named beside it has to be looked at.
"""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import fastmcp
import pytest
import trio
import trio._threads
from fastmcp.server.auth import RemoteAuthProvider
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from mcp.server import MCPServer
from mcp.server._otel import OpenTelemetryMiddleware
from mcp.server.auth.middleware.auth_context import auth_context_var, get_access_token
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend
from mcp.server.auth.provider import principal_components
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import AESGCMRequestStateCodec, RequestStateBoundary, RequestStateSecurity
from mcp.server.runner import ServerRunner, aclose_shielded, serve_one
from mcp.shared.dispatcher import DispatchContext, Outbound
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS, classify_inbound_request, validate_mcp_param_headers
from mcp.shared.jsonrpc_dispatcher import handler_exception_to_error_data
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import AnyHttpUrl
from starlette.requests import HTTPConnection

import mcp_hybrid
from harness.example import Example
from harness.guarded import Opaque, own
from mcp_hybrid.exchange.context import ExchangeContext
from mcp_hybrid.security.metadata import WELL_KNOWN
from mcp_hybrid.service.kernel import UntracedRunner
from mcp_hybrid.sessions.connection import FASTMCP_NAME, SessionConnection, alone
from mcp_hybrid.sessions.record import SessionRecord

PACKAGE = Path(mcp_hybrid.__file__).parent

ROOMS = {
    # room: the rooms it may import. Data flows one way; a lower room never imports a higher one.
    "errors": set(),
    "counts": set(),
    "clock": set(),
    "containment": set(),
    "text": set(),
    "runtime": {"errors", "containment"},
    "routing": {"errors"},
    "security": {"errors", "routing"},
    "backplane": {"errors", "clock"},
    "sessions": {"errors", "counts", "clock", "containment", "runtime", "routing", "security", "backplane"},
    "exchange": {"errors", "counts", "clock", "containment", "runtime", "routing", "security", "backplane", "sessions"},
    "service": {
        "errors",
        "counts",
        "clock",
        "containment",
        "text",
        "runtime",
        "routing",
        "security",
        "backplane",
        "sessions",
        "exchange",
    },
    "telemetry": {"errors", "counts", "text", "runtime", "routing", "backplane", "settings"},
    "operator": {"errors", "routing", "security", "backplane", "service", "settings", "telemetry"},
}


def imports(path: Path) -> set[str]:
    """Return the rooms that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mcp_hybrid"):
            found.add((node.module or "").removeprefix("mcp_hybrid").lstrip(".").partition(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_lower_room_never_imports_a_higher_one(room: str) -> None:
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else [*(PACKAGE / room).rglob("*.py")]
    assert files
    for path in files:
        assert imports(path) <= ROOMS[room] | {room}, path


@pytest.mark.parametrize(
    "room", ["errors", "runtime", "routing", "sessions", "exchange", "backplane", "service", "app"]
)
def test_the_core_knows_no_http_server(room: str) -> None:
    for path in [PACKAGE / f"{room}.py", *(PACKAGE / room).rglob("*.py")]:
        if path.exists():
            assert "hypercorn" not in {line.split()[1].partition(".")[0] for line in import_lines(path)}


@pytest.mark.parametrize("path", sorted((PACKAGE / "routing").glob("*.py")), ids=lambda path: path.stem)
def test_routing_is_pure(path: Path) -> None:
    modules = {line.split()[1].partition(".")[0] for line in import_lines(path)}
    impure = {"time", "datetime", "anyio", "trio", "asyncio", "starlette", "os", "socket", "random", "secrets"}
    assert not modules & impure


def import_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]


def test_the_pinned_hypercorn_is_the_one_whose_seams_are_known() -> None:
    assert version("hypercorn").startswith("0.18.")


def test_a_connection_is_made_ready_or_from_a_handshake_and_says_what_it_is() -> None:
    # sessions/connection.py, service/kernel.py, service/calls.py
    alone = Connection.from_envelope("2025-11-25", None, None)
    assert alone.initialize_accepted
    assert not alone.has_standalone_channel
    assert alone.client_capabilities is None
    parameters = inspect.signature(Connection.for_loop).parameters
    assert {"outbound", "session_id", "protocol_version_hint"} <= set(parameters)


def test_the_lean_connection_has_all_that_the_sdks_has() -> None:
    # sessions/connection.py sets the same attributes without calling the base class.
    record = SessionRecord(b'["2025-11-25","client","1",{}]', "", 0)
    usual = Connection.for_loop(Connection.from_envelope("2025-11-25", None, None).outbound, session_id="s")
    lean = SessionConnection(usual.outbound, "s", record)
    for name in vars(usual):
        assert hasattr(lean, name), name
    assert lean.client_params is not None
    assert lean.client_capabilities == lean.client_params.capabilities
    assert lean.initialized.is_set()
    assert lean.initialize_accepted
    assert lean.state is lean.state
    assert lean.exit_stack is lean.exit_stack


def test_the_kernel_is_called_with_a_context_a_method_and_params() -> None:
    # service/kernel.py: serve_once does what the SDK's serve_one does, and cleans up only where there is something to.
    alone = inspect.getsource(serve_one)
    assert "runner = ServerRunner(server, connection, lifespan_state)" in alone
    assert "await runner.on_request(dctx, method, params)" in alone
    assert "await aclose_shielded(connection)" in alone
    assert [*inspect.signature(ServerRunner).parameters][:3] == ["server", "connection", "lifespan_state"]
    assert list(inspect.signature(aclose_shielded).parameters) == ["connection"]


async def test_the_kernel_without_spans_runs_all_other_middleware_in_the_sdks_order() -> None:
    # service/kernel.py: UntracedRunner
    server: Server[Any] = Server("any")
    assert [type(each) for each in server.middleware] == [OpenTelemetryMiddleware]
    ran: list[str] = []

    def middleware(name: str) -> Any:
        async def run(context: Any, proceed: Any) -> Any:  # applications name their parameters as they like
            ran.append(name)
            return await proceed(context)

        return run

    async def handler(_: Any) -> dict[str, Any]:
        ran.append("handler")
        return {}

    server.middleware += [middleware("first"), middleware("second")]
    for runner in (ServerRunner, UntracedRunner):
        nobody: Any = None
        context: Any = ServerRequestContext(
            session=nobody, lifespan_context=None, protocol_version="", method="ping", params=None
        )
        ran.clear()
        await runner(server, alone("2025-11-25"), None)._compose_server_middleware(handler)(context)
        assert ran == ["first", "second", "handler"]


def test_the_context_is_all_that_the_kernel_asks_of_a_transport() -> None:
    asked = {name for name in vars(DispatchContext) | vars(Outbound) if not name.startswith("_")}
    assert asked == {
        "transport", "can_send_request", "request_id", "message_metadata", "cancel_requested", "progress",
        "send_raw_request", "notify",
    }  # fmt: skip
    own = {name for name in dir(ExchangeContext) if not name.startswith("_")} | {"request_id", "message_metadata"}
    assert asked <= own


def test_metadata_carries_what_handlers_are_given() -> None:
    # service/kernel.py: metadata
    fields = ServerMessageMetadata.__dataclass_fields__
    assert {"request_context", "close_sse_stream", "close_standalone_sse_stream"} <= set(fields)


def test_a_refusal_to_ask_is_an_mcp_error_whose_message_can_be_ours() -> None:
    # sessions/questions.py: CannotAskError
    error = NoBackChannelError("x")
    assert isinstance(error, MCPError)
    error.error.message = "ours"
    assert str(error) == "ours"


def test_errors_are_mapped_to_the_wire_by_one_function_and_statuses_by_one_table() -> None:
    # exchange/outcome.py
    assert handler_exception_to_error_data(ValueError()) is None
    mapped = handler_exception_to_error_data(MCPError(-5, "five"))
    assert mapped is not None
    assert (mapped.code, mapped.message) == (-5, "five")
    assert ERROR_CODE_HTTP_STATUS[-32601] == 404
    assert ERROR_CODE_HTTP_STATUS[-32602] == 400


def test_the_classifier_and_the_header_validator_are_pure_functions() -> None:
    # exchange/modern.py
    assert "headers" in inspect.signature(classify_inbound_request).parameters
    assert list(inspect.signature(validate_mcp_param_headers).parameters) == ["input_schema", "arguments", "headers"]


def test_an_mcpserver_is_a_lowlevel_server_inside() -> None:
    # targets.py: as_lowlevel
    assert isinstance(Example().server, MCPServer)
    assert isinstance(Example().server._lowlevel_server, Server)
    assert callable(Server("x").get_request_handler)
    assert Server("x").get_tool_input_schema is None


def test_the_authentication_of_an_mcpserver_is_where_it_is_looked_for() -> None:
    # authentication.py
    server = own()
    assert server.settings.auth is not None
    assert isinstance(server._token_verifier, Opaque)
    assert server._auth_server_provider is None
    assert server._custom_starlette_routes == []
    assert "validate_token_resource" in type(server.settings.auth).model_fields
    assert MCPServer("without").settings.auth is None


def test_the_authentication_of_a_fastmcp_is_where_it_is_looked_for() -> None:
    # authentication.py
    verifier = StaticTokenVerifier({}, required_scopes=["tools"])
    provider = RemoteAuthProvider(verifier, [AnyHttpUrl("https://login.example.org")], "http://127.0.0.1:8000")
    server = fastmcp.FastMCP("x", auth=provider)
    assert server.auth is provider
    assert provider.required_scopes == ["tools"]
    assert verifier.get_routes(mcp_path="/mcp") == []
    assert [route.path for route in provider.get_routes(mcp_path="/mcp")] == [f"{WELL_KNOWN}/mcp"]
    assert str(provider._get_resource_url("/mcp")) == "http://127.0.0.1:8000/mcp"
    assert provider.authorization_servers
    assert fastmcp.FastMCP("without").auth is None


async def test_the_bearer_backend_answers_with_credentials_and_a_user_or_nothing() -> None:
    # security/bearer.py
    backend, sent = BearerAuthBackend(Opaque()), [(b"authorization", b"Bearer alice")]
    found = await backend.authenticate(HTTPConnection({"type": "http", "headers": sent}))
    assert found is not None
    credentials, user = found
    assert (credentials.scopes, user.access_token.subject) == (["tools"], "alice")
    assert principal_components(user.access_token) == ("c", None, "alice")
    assert await backend.authenticate(HTTPConnection({"type": "http", "headers": []})) is None
    token = auth_context_var.set(user)
    assert get_access_token() is user.access_token
    auth_context_var.reset(token)


@pytest.mark.parametrize("server", [Example().server._lowlevel_server, fastmcp.FastMCP("x")._mcp_server])
def test_a_server_that_was_given_no_key_for_request_state_has_one_of_its_process(server: Server[Any]) -> None:
    # exchange/request_state.py: shared_request_state
    (boundary,) = (one for one in server.middleware if isinstance(one, RequestStateBoundary))
    usual = RequestStateSecurity.ephemeral()
    for name in ("ttl", "audience", "bind_principal"):
        assert getattr(boundary._security, name) == getattr(usual, name)
    codec = boundary._security.codec
    assert isinstance(codec, AESGCMRequestStateCodec)
    assert len(codec._ring) == 1
    assert codec.unseal(codec.seal(b"x")) == b"x"


def test_the_revisions_are_those_the_tables_were_written_for() -> None:
    assert HANDSHAKE_PROTOCOL_VERSIONS == ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
    assert MODERN_PROTOCOL_VERSIONS == ("2026-07-28",)


# What is used of AnyIO's and Trio's threads: `exchange/threads.py`


def test_trio_keeps_its_default_limiter_where_it_is_looked_for() -> None:
    async def main() -> None:
        usual = trio.to_thread.current_default_thread_limiter()
        assert trio._threads._limiter_local.get() is usual
        taken: list[object] = []

        class Limiter:
            async def acquire_on_behalf_of(self, borrower: object) -> None:
                taken.append(borrower)

            def release_on_behalf_of(self, borrower: object) -> None:
                taken.remove(borrower)

        trio._threads._limiter_local.set(Limiter())  # type: ignore[arg-type]  # what is pinned: nothing else is asked of it
        assert await anyio.to_thread.run_sync(lambda: len(taken)) == 1
        assert taken == []

    trio.run(main)


def test_anyio_keeps_its_default_limiter_where_it_is_looked_for() -> None:
    async def main() -> None:
        from anyio._backends import _asyncio  # noqa: PLC0415 - on asyncio only

        usual = anyio.to_thread.current_default_thread_limiter()
        assert _asyncio._default_thread_limiter.get() is usual
        taken: list[str] = []

        class Limiter:
            async def __aenter__(self) -> None:
                taken.append("taken")

            async def __aexit__(self, *_: object) -> None:
                taken.clear()

        _asyncio._default_thread_limiter.set(Limiter())  # type: ignore[arg-type]  # as above
        assert await anyio.to_thread.run_sync(lambda: list(taken)) == ["taken"]

    anyio.run(main)


@pytest.mark.parametrize("kind", [MCPServer, fastmcp.FastMCP])
async def test_a_blocking_tool_uses_the_default_limiter(kind: Any) -> None:
    server = kind("blocking")
    limiter = trio.to_thread.current_default_thread_limiter()

    def borrowed() -> int:
        return limiter.borrowed_tokens

    server.tool()(borrowed)
    result = await server.call_tool("borrowed", {})
    assert "1" in repr(getattr(result, "content", result))


# What is read of the SDK's errors: `service/prompts.py`


async def test_a_prompt_asked_for_wrongly_is_told_by_a_value_error() -> None:
    server: MCPServer[None] = MCPServer("prompts")

    @server.prompt()
    def greet(name: str, times: int = 1) -> str:
        return name * times

    for name, arguments, text in (
        ("nope", None, "Unknown prompt: "),
        ("greet", None, "Missing required arguments: "),
        ("greet", {"name": "x", "times": "many"}, "Error rendering prompt "),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            await server.get_prompt(name, arguments)
        assert type(caught.value) is ValueError
        assert type(caught.value.__cause__) is ValueError


# Where FastMCP keeps the name of a session: `sessions/connection.py`


def test_fastmcp_takes_a_sessions_name_from_its_connections_state() -> None:
    source = inspect.getsource(fastmcp.Context.session_id.fget)  # type: ignore[attr-defined]  # a property
    assert f'connection.state.get("{FASTMCP_NAME}")' in source

"""The command `mcp-hybrid`: serve, check, call, sessions, session-key, version.

Commands import what they need when they run, so that the small ones do not wait for the SDK. Option values are checked
where all settings are checked, not here: a wrong one reads the same on the command line as in a file.
"""

# No `from __future__ import annotations`: `_with_settings` hands real annotations, not their text, to typer.

import inspect
import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from datetime import datetime

    from mcp_hybrid.settings import Loaded


class _Commands(TyperGroup):
    """Turns an operator's mistake, wherever it is found, into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from mcp_hybrid.errors import ConfigurationError  # noqa: PLC0415 - see the module's docstring
            from mcp_hybrid.telemetry.logs import flush_logs  # noqa: PLC0415 - see the module's docstring

            if not isinstance(error, ConfigurationError):
                raise
            flush_logs()  # so that this line comes last
            typer.echo(f"mcp-hybrid: {error}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    help="One MCP endpoint for every client.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # it prints local variables, session keys among them
)

Target = Annotated[
    str | None,
    typer.Argument(metavar="[TARGET]", help="module:attr, file.py:attr or file.py; none: the built-in demo."),
]
ModeOption = Annotated[str | None, typer.Option("--mode", help="hybrid, stateless or stateful.")]
RuntimeOption = Annotated[str | None, typer.Option("--runtime", help="auto, trio or asyncio.")]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[str | None, typer.Option("--port", help="Port to listen on; 0 takes any free one.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")]
PathOption = Annotated[str | None, typer.Option("--path", help="URL path of the endpoint.")]
ProgressOption = Annotated[str | None, typer.Option("--progress", help="session, always or off.")]
UnknownOption = Annotated[str | None, typer.Option("--unknown-session", help="reject or stateless.")]
WorkersOption = Annotated[str | None, typer.Option("--workers", help="Processes that share the port.")]
LevelOption = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
AnonymousOption = Annotated[
    bool | None,
    typer.Option("--allow-anonymous", help="Serve everybody, on an address that others can reach.", show_default=False),
]
FormatOption = Annotated[str | None, typer.Option("--log-format", help="auto, console or json.")]


def _load(  # noqa: PLR0913 - typer makes one option of each parameter
    *,
    target: Target = None,
    mode: ModeOption = None,
    runtime: RuntimeOption = None,
    host: HostOption = None,
    port: PortOption = None,
    config: ConfigOption = None,
    path: PathOption = None,
    progress: ProgressOption = None,
    unknown_session: UnknownOption = None,
    workers: WorkersOption = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    allow_anonymous: AnonymousOption = None,
) -> "Loaded":
    from mcp_hybrid.settings import load  # noqa: PLC0415 - see the module's docstring

    options = {
        "target": target,
        "mode": mode,
        "runtime": runtime,
        "path": path,
        "progress": progress,
        "unknown_session": unknown_session,
        "server.host": host,
        "server.port": port,
        "server.workers": workers,
        "log.level": log_level,
        "log.format": log_format,
        "auth.allow_anonymous": allow_anonymous,
    }
    return load({key: value for key, value in options.items() if value is not None}, config=config)


def _with_settings(command: Callable[["Loaded"], None]) -> Callable[..., None]:
    """Give a command the options of `_load` for its own, and the settings they lead to for its argument."""

    @wraps(command)
    def run(**options: Any) -> None:
        command(_load(**options))

    signature = inspect.signature(_load).replace(return_annotation=None)
    run.__dict__["__signature__"] = signature  # where inspect, and so typer, looks first
    run.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    return run


@app.command()
@_with_settings
def serve(loaded: "Loaded") -> None:
    """Serve TARGET until told to stop (SIGTERM or ctrl-C); with several workers, SIGHUP reloads."""
    from mcp_hybrid.server import launch  # noqa: PLC0415 - see the module's docstring
    from mcp_hybrid.telemetry.logs import configure_logging, take_over_process  # noqa: PLC0415 - as above

    configure_logging(loaded.settings.log.level, loaded.settings.log.format)
    take_over_process()
    raise typer.Exit(launch.serve(loaded))


@app.command()
@_with_settings
def check(loaded: "Loaded") -> None:
    """Show the effective settings, where each came from, and the server that TARGET names."""
    import time  # noqa: PLC0415 - see the module's docstring

    from mcp_hybrid.app import own_paths  # noqa: PLC0415 - as above
    from mcp_hybrid.authentication import authentication_for  # noqa: PLC0415 - as above
    from mcp_hybrid.program_pages import ProgramPages, custom_routes  # noqa: PLC0415 - as above
    from mcp_hybrid.runtime.choice import choose  # noqa: PLC0415 - as above
    from mcp_hybrid.runtime.program import IN_PLACE  # noqa: PLC0415 - as above
    from mcp_hybrid.server.launch import check_certificate  # noqa: PLC0415 - as above
    from mcp_hybrid.targets import as_lowlevel, kind_of, load_target  # noqa: PLC0415 - as above

    check_certificate(loaded.settings)
    found = load_target(loaded.settings.target)
    authentication = authentication_for(found, loaded.settings, time.time)
    routes = [*authentication.routes, *custom_routes(found)]
    pages = ", ".join(ProgramPages(found, routes, IN_PLACE, own_paths(loaded.settings)).paths)
    runtime = choose(found, loaded.settings.runtime)
    server = f"{as_lowlevel(found).name} ({kind_of(found)})"
    _show(loaded, server, authentication.words, f"{runtime.name} ({runtime.reason})", pages)


def _show(loaded: "Loaded", server: str, authentication: str, runtime: str, pages: str) -> None:
    from rich.console import Console  # noqa: PLC0415 - see the module's docstring
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    from mcp_hybrid.settings import to_display  # noqa: PLC0415 - as above

    table = Table("setting", "value", "from", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for key, value in to_display(loaded.settings).items():
        # Text: a value such as "[::1]" is not markup
        table.add_row(Text(key), Text(value or "none", overflow="fold"), Text(loaded.origins[key], overflow="fold"))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # for grep: one setting, one line
    console.print(table)
    console.print(Text(f"\nserves {server}\nauthentication: {authentication}\nruntime: {runtime}"))
    if pages:
        console.print(Text(f"pages of its own: {pages}"))


@app.command()
def call(
    url: Annotated[str, typer.Argument(help="The endpoint, such as http://127.0.0.1:8000/mcp.")],
    tool: Annotated[str, typer.Argument(help="The tool's name.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its arguments.")] = None,
    no_session: Annotated[bool, typer.Option("--no-session", help="Never echo a session id.")] = False,
    protocol: Annotated[str, typer.Option("--protocol", help="legacy, modern or auto.")] = "legacy",
    token: Annotated[
        str | None, typer.Option("--token", envvar="MCP_TOKEN", help="API key or token to send; better by variable.")
    ] = None,
) -> None:
    """Call one tool and show its progress and result."""
    from mcp_hybrid import client  # noqa: PLC0415 - see the module's docstring
    from mcp_hybrid.errors import ConfigurationError  # noqa: PLC0415 - as above

    try:
        chosen = client.Protocol(protocol)
    except ValueError:
        raise ConfigurationError(f"--protocol: {protocol!r} is not accepted; expected legacy, modern or auto") from None
    raise typer.Exit(client.call(url, tool, arguments or [], not no_session, chosen, token))


sessions = typer.Typer(help="List the sessions that a running server holds, or end one.", no_args_is_help=True)
app.add_typer(sessions, name="sessions")

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="Where the server's admin page is, such as http://127.0.0.1:8000; by the settings."),
]


@sessions.command("list")
def list_sessions(url: UrlOption = None, config: ConfigOption = None) -> None:
    """Show the sessions that are live. The key is operator.admin_key: from the environment or --config."""
    from mcp_hybrid.client import sessions as client  # noqa: PLC0415 - see the module's docstring
    from mcp_hybrid.settings import load  # noqa: PLC0415 - as above

    raise typer.Exit(client.list_sessions(load(config=config).settings, url))


@sessions.command("end")
def end_session(
    session: Annotated[str, typer.Argument(metavar="HASH", help="The session's hash, or the start of it as in logs.")],
    url: UrlOption = None,
    config: ConfigOption = None,
) -> None:
    """End a session for good: its calls are cancelled, its id is worth nothing any more."""
    from mcp_hybrid.client import sessions as client  # noqa: PLC0415 - see the module's docstring
    from mcp_hybrid.settings import load  # noqa: PLC0415 - as above

    raise typer.Exit(client.end_session(load(config=config).settings, url, session))


api_key = typer.Typer(help="Make API keys.", no_args_is_help=True)
app.add_typer(api_key, name="api-key")


@api_key.callback()
def _api_key() -> None:
    """Make API keys."""  # a callback keeps `new` a command: typer would take the only one for the group itself


@api_key.command("new")
def new_api_key(
    owner: Annotated[str, typer.Option("--owner", help="Whose key it is; their keys share their sessions.")],
    scope: Annotated[list[str] | None, typer.Option("--scope", help="A scope that it has; may be repeated.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="How the file calls it; made up if not given.")] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="How long it is good, such as 90d.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="The file of API keys to add it to.")] = None,
) -> None:
    """Print a fresh API key, once, and the entry for the file that auth.api_keys names (or add it to --file)."""
    from mcp_hybrid.security import api_keys  # noqa: PLC0415 - see the module's docstring

    made = api_keys.make(owner, scope or (), _moment(expires), name)
    if file is not None:
        api_keys.append(file, made)
        typer.echo(f"added {made.id} to {file}; the key is shown only now:", err=True)
        typer.echo(made.key)
    else:
        typer.echo("the key is shown only now; the entry goes into the file that auth.api_keys names:", err=True)
        typer.echo(f"{made.key}\n\n{made.entry}", nl=False)


def _moment(lifetime: str | None) -> "datetime | None":
    """Return when something ends that is good for so long from now on."""
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415 - see the module's docstring

    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - as above

    from mcp_hybrid.errors import ConfigurationError  # noqa: PLC0415 - as above
    from mcp_hybrid.values import PositiveDuration  # noqa: PLC0415 - as above

    if lifetime is None:
        return None
    try:
        return datetime.now(UTC) + timedelta(seconds=TypeAdapter(PositiveDuration).validate_python(lifetime))
    except (ValidationError, OverflowError):
        raise ConfigurationError(
            f'--expires: {lifetime!r} is not accepted; expected a duration such as "90d"'
        ) from None


@app.command("session-key")
def session_key() -> None:
    """Print a fresh session key: 32 random bytes in base64."""
    from mcp_hybrid.sessions.seal import fresh_key  # noqa: PLC0415 - see the module's docstring

    typer.echo(fresh_key())


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(installed_version("mcp-hybrid"))


def main() -> None:
    """Run the command line; the entry point of the `mcp-hybrid` script."""
    _open_standard_streams()
    sys.exit(app())


def _open_standard_streams() -> None:
    """Have descriptors 0 to 2 be open: a socket that got one of these numbers would be written to by who prints."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or open(0)  # noqa: SIM115 - it is no path, and stays open
    sys.stdout = sys.stdout or open(1, "w")  # noqa: SIM115 - as above
    sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115 - as above

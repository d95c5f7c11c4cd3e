"""From what an operator types to the low-level MCP server that is run.

A target is `module:attr`, `file.py:attr` or `file.py`, and names an `MCPServer`, a low-level `Server` or a
`fastmcp.FastMCP`. Importing a target runs its code: whatever goes wrong there is the operator's to know in one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.lowlevel import Server

from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.runtime.hints import hint_at_import

DEMO: Final = "mcp_hybrid.demo:server"
USUAL_NAMES: Final = ("mcp", "server", "app")
FORMS: Final = "module:attr, file.py:attr or file.py"
KINDS: Final = "an MCPServer, a low-level Server or a FastMCP"


# What can be served


def kind_of(target: object) -> str | None:
    """Return which kind of server `target` is, in words, or None if it is none that can be served."""
    if isinstance(target, MCPServer):
        return "MCPServer"
    if isinstance(target, Server):
        return "low-level Server"
    return "FastMCP" if _is_fastmcp(target) else None


def as_lowlevel(target: object) -> Server[Any]:
    """Return the low-level server in `target`; raises ConfigurationError naming its type if there is none."""
    if isinstance(target, Server):
        return target
    # Neither wrapper has a public way to the server it wraps.
    if isinstance(target, MCPServer):
        inner = getattr(target, "_lowlevel_server", None)
    elif _is_fastmcp(target):
        inner = getattr(target, "_mcp_server", None)
    else:
        raise ConfigurationError(f"{_described(target)} cannot be served; expected {KINDS}")
    if not isinstance(inner, Server):
        raise ConfigurationError(f"{_described(target)} cannot be served: this version keeps its server elsewhere")
    return inner


def _is_fastmcp(target: object) -> bool:
    # Only a process that has imported fastmcp can hold one of its objects, and importing it takes a second.
    fastmcp = sys.modules.get("fastmcp")
    kind = getattr(fastmcp, "FastMCP", None)
    return isinstance(kind, type) and isinstance(target, kind)


def _described(target: object) -> str:
    if isinstance(target, type):
        return f"the class {target.__module__}.{target.__qualname__}"
    return f"an object of type {type(target).__module__}.{type(target).__qualname__}"


# Where it is found


def load_target(spec: str | None) -> object:
    """Import what `spec` names (None: the demo) and return the server object.

    The working directory becomes importable, and so does the directory of a file. Raises ConfigurationError when
    nothing is found, when importing it raises, or when it is not a server.
    """
    place, _, attribute = (spec or DEMO).rpartition(":")
    if not place and attribute.endswith(".py"):
        place, attribute = attribute, ""
    elif not place or not attribute:
        raise ConfigurationError(f'target "{spec}" is not of the form {FORMS}')
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    target = _attribute(module, place, attribute) if attribute else _only_server(module, place)
    if kind_of(target) is None:
        raise ConfigurationError(f"{place}:{attribute} is {_described(target)}; expected {KINDS}")
    return target


def _import_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())

    def load() -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # The module itself, or a package it is in; what *it* fails to import is reported as its own exception.
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                raise ConfigurationError(f'module "{error.name}" was not found from {Path.cwd()}') from None
            raise

    return _running(name, load)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"file {path} does not exist")
    _make_importable(path.resolve().parent)
    # A name of its own: a file called server.py or mcp.py must not replace a module of that name.
    name = f"mcp_hybrid_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module, execute = importlib.util.module_from_spec(spec), spec.loader.exec_module

    def load() -> ModuleType:
        sys.modules[name] = module  # where pydantic and dataclasses look up a class's module
        try:
            execute(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return _running(str(path), load)


def _make_importable(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _running(place: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the operator's code may raise anything, or exit
        words = " ".join(traceback.format_exception_only(error)[-1].split())
        hint = hint_at_import(error)
        what_to_do = f"; {hint}" if hint is not None else ""
        raise ConfigurationError(f"importing {place} raised {words}{_where(error)}{what_to_do}") from None


def _where(error: BaseException) -> str:
    """Say which line of the imported code led to `error`; its own line, not the library's that it called."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    machinery = (
        __file__,
        importlib.__file__,
        "<frozen importlib._bootstrap>",
        "<frozen importlib._bootstrap_external>",
    )
    own = [frame for frame in frames if frame.filename not in machinery]
    return f" ({own[0].filename}, line {own[0].lineno})" if own else ""


def _attribute(module: ModuleType, place: str, path: str) -> object:
    found: object = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            hint = _hint(name, (each for each in dir(found) if not each.startswith("_")))
            raise ConfigurationError(f'{place} has no "{path}"{hint}') from None
    return found


def _hint(name: str, known: Iterable[str]) -> str:
    nearest = get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f'; the nearest name is "{nearest[0]}"' if nearest else ""


def _only_server(module: ModuleType, place: str) -> object:
    """Return the server of a file that was named without an attribute: by a usual name, else the only one there is."""
    servers = {name: value for name, value in vars(module).items() if kind_of(value) is not None}
    for name in USUAL_NAMES:
        if name in servers:
            return servers[name]
    if len({id(server) for server in servers.values()}) == 1:
        return next(iter(servers.values()))
    if servers:
        raise ConfigurationError(
            f"{place} holds several servers; name one: {', '.join(f'{place}:{n}' for n in servers)}"
        )
    raise ConfigurationError(f"{place} holds no server; expected {KINDS}")

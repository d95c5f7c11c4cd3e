"""Which runtime a program needs, as far as can be told from its code, and why that was chosen.

A program that imports Trio, in one of its own modules, knows where it runs. Any other is an asyncio program if one of
them imports asyncio, or a library that is known to need it. Of those that import neither, FastMCP's servers run on
asyncio, for which FastMCP is made, and others on Trio. Own modules are those that are no library's: the modules in
which the server and its functions are defined, and those that they import.
"""

from __future__ import annotations

import ast
import inspect
import site
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from mcp_hybrid.runtime.names import RuntimeName

ASYNCIO_LIBRARIES: Final = frozenset(
    {
        "aioboto3", "aiobotocore", "aiocache", "aiodns", "aiofiles", "aiogram", "aiohttp", "aiokafka", "aiomcache",
        "aiomqtt", "aiomysql", "aiopg", "aioredis", "aiormq", "aio_pika", "aioquic", "aiosmtplib", "aiosqlite",
        "arq", "async_lru", "asyncio", "asyncmy", "asyncpg", "asyncpraw", "asyncssh", "async_timeout", "bleak",
        "databases", "discord", "edgedb", "faststream", "gel", "gql", "grpc.aio", "kubernetes_asyncio", "miniopy_async",
        "motor", "nats", "nest_asyncio", "nio", "odmantic", "playwright.async_api", "prisma", "psycopg.AsyncConnection",
        "psycopg_pool", "pyppeteer", "redis.asyncio", "beanie", "slack_sdk.web.async_client", "sqlalchemy.ext.asyncio",
        "telegram", "telethon", "temporalio", "tortoise", "uvloop", "valkey.asyncio", "websockets",
        "winloop",
    }
)  # fmt: skip
"""Modules that run on asyncio only. `a.b` is found by `import a.b` and by `from a import b`."""

_LIMIT: Final = 500
"""Modules of one program that are looked at."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A runtime that was chosen."""

    name: RuntimeName
    """`trio` or `asyncio`."""
    reason: str
    """Why, in words."""
    is_set: bool = False
    """Whether it was asked for by name."""


def choose(server: object, wanted: RuntimeName) -> Choice:
    """Choose the runtime for a server object; `wanted` counts, where it says more than `auto`."""
    if wanted is not RuntimeName.AUTO:
        return Choice(wanted, "runtime is set", is_set=True)
    asyncio: str | None = None
    for module, imported in _imports(_modules_of(server)):
        if imported == "trio":
            return Choice(RuntimeName.TRIO, f"{module} imports trio")
        if asyncio is None and imported in ASYNCIO_LIBRARIES:
            asyncio = f"{module} imports {imported}"
    if asyncio is not None:
        return Choice(RuntimeName.ASYNCIO, asyncio)
    if _is_fastmcp(server):
        return Choice(RuntimeName.ASYNCIO, "FastMCP is made for asyncio")
    return Choice(RuntimeName.TRIO, "nothing in its code needs asyncio")


def _is_fastmcp(server: object) -> bool:
    kind = getattr(sys.modules.get("fastmcp"), "FastMCP", None)
    return isinstance(kind, type) and isinstance(server, kind)


# What a program's own modules are


def _modules_of(server: object) -> list[ModuleType]:
    """Return the modules that hold the server object, or define the functions that it was given."""
    names = dict.fromkeys(name for name, module in [*sys.modules.items()] if _holds(module, server))
    for value in _values(server):
        function = inspect.unwrap(value) if callable(value) else value
        name = getattr(function, "__module__", None)
        if isinstance(name, str):
            names.setdefault(name)
    return [module for name in names if (module := sys.modules.get(name)) is not None and _is_own(module)]


def _holds(module: ModuleType, server: object) -> bool:
    names = getattr(module, "__dict__", None)
    return isinstance(names, dict) and any(value is server for value in [*names.values()])


def _values(server: object) -> Iterator[Any]:
    """Yield the functions of a server, wherever it keeps them: what is no function is harmless."""
    seen: set[int] = set()
    waiting = deque([(server, 0)])
    while waiting and len(seen) < 20 * _LIMIT:
        value, depth = waiting.popleft()
        if id(value) in seen or isinstance(value, str | bytes | int | float | type | ModuleType):
            continue
        seen.add(id(value))
        if inspect.isroutine(value):
            yield value
        elif depth < 6:
            waiting.extend((each, depth + 1) for each in _parts(value))


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return [*value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return [*value]
    if hasattr(value, "func") and hasattr(value, "args"):  # functools.partial
        return [value.func, *value.args]
    if type(value).__module__.partition(".")[0] in ("mcp", "fastmcp"):
        return [*getattr(value, "__dict__", {}).values()]
    return ()


def _is_own(module: ModuleType) -> bool:
    """Whether a module is the program's, and no library's."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(place) for place in _libraries())


def _libraries() -> list[Path]:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent.parent)}
    return [Path(place).resolve() for place in places if place]


# What they import


def _imports(modules: Iterable[ModuleType]) -> Iterator[tuple[str, str]]:
    """Yield what own modules import, each with the name of the module; follow what is the program's own."""
    waiting = deque(modules)
    seen = {module.__name__ for module in waiting}
    while waiting:
        module = waiting.popleft()
        for name in _imported(module):
            yield _shown(module), name
            found = sys.modules.get(name)
            if found is not None and name not in seen and len(seen) < _LIMIT and _is_own(found):
                seen.add(name)
                waiting.append(found)


def _shown(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return Path(file).name if isinstance(file, str) else module.__name__


def _imported(module: ModuleType) -> Iterator[str]:
    """Yield the names of modules that a module imports, with their packages; functions' own imports too."""
    file = getattr(module, "__file__", None)
    try:
        tree = _parsed(Path(str(file)).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, ast.If) and _is_not_run(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            yield from _with_packages(base)
            for alias in node.names:
                yield f"{base}.{alias.name}"


def _parsed(source: bytes) -> ast.Module:
    try:
        return ast.parse(source)
    except SystemError:  # Python 3.11: another parse came between, such as of a traceback that a finalizer logs
        return ast.parse(source)


def _is_not_run(test: ast.expr) -> bool:
    """Whether a condition holds in no served program: for type checkers, or where the file is the program itself."""
    text = ast.unparse(test)
    return text.rpartition(".")[2] == "TYPE_CHECKING" or text.replace('"', "'") in (
        "__name__ == '__main__'",
        "'__main__' == __name__",
    )


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def _absolute(node: ast.ImportFrom, module: ModuleType) -> str:
    if not node.level:
        return node.module or ""
    package = getattr(module, "__package__", None) or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])

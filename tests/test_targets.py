"""What may be served, how it is named, and what a name that leads nowhere is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server.lowlevel import Server

from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.targets import as_lowlevel, kind_of, load_target

ONE = "from mcp.server import MCPServer\n"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of the test's own; what it makes importable is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def name_of(spec: str | None) -> str:
    return as_lowlevel(load_target(spec)).name


def refusal(spec: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_target(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Naming a target


def test_no_target_is_the_demo() -> None:
    assert name_of(None) == "mcp-hybrid-demo"


def test_a_module_in_the_working_directory_is_found() -> None:
    write("target_in_cwd.py", f"{ONE}mine = MCPServer('in cwd')")
    assert name_of("target_in_cwd:mine") == "in cwd"


def test_an_attribute_may_be_inside_another() -> None:
    write("target_nested.py", f"{ONE}class box:\n    mine = MCPServer('boxed')")
    assert name_of("target_nested:box.mine") == "boxed"


def test_a_file_is_relative_to_the_working_directory_or_absolute(directory: Path) -> None:
    write("deep/target.py", f"{ONE}mine = MCPServer('deep')")
    assert name_of("deep/target.py:mine") == "deep"
    assert name_of(f"{directory}/deep/target.py:mine") == "deep"


def test_a_file_imports_its_neighbours() -> None:
    write("pair/target_neighbour.py", "NAME = 'neighbour'")
    write("pair/main.py", f"{ONE}from target_neighbour import NAME\nmcp = MCPServer(NAME)")
    assert name_of("pair/main.py") == "neighbour"


def test_a_file_called_like_a_library_does_not_replace_it() -> None:
    before = sys.modules["mcp"]
    write("mcp.py", f"{ONE}server = MCPServer('called mcp')")
    assert name_of("mcp.py") == "called mcp"
    assert sys.modules["mcp"] is before


@pytest.mark.parametrize("name", ["mcp", "server", "app"])
def test_a_file_alone_is_served_by_its_usual_name(name: str) -> None:
    write("some.py", f"{ONE}other = MCPServer('other')\n{name} = MCPServer('usual')")
    assert name_of("some.py") == "usual"


def test_a_usual_name_that_is_no_server_is_passed_over() -> None:
    write("some.py", "import mcp\nfrom mcp.server import MCPServer\napp = 3\nmine = MCPServer('mine')\nsame = mine")
    assert name_of("some.py") == "mine"


# What cannot be found


@pytest.mark.parametrize("spec", ["x", ":x", "x:", "x.py:", ":"])
def test_what_is_no_target_is_told_the_forms(spec: str) -> None:
    assert refusal(spec) == f'target "{spec}" is not of the form module:attr, file.py:attr or file.py'


def test_a_missing_module_is_told_by_its_name(directory: Path) -> None:
    assert refusal("nowhere.at_all:x") == f'module "nowhere" was not found from {directory}'


def test_a_missing_file_is_told_by_its_path() -> None:
    assert refusal("none.py") == "file none.py does not exist"


def test_a_missing_attribute_is_told_the_nearest() -> None:
    assert refusal("mcp_hybrid.demo:servr") == 'mcp_hybrid.demo has no "servr"; the nearest name is "server"'


def test_a_module_that_imports_what_is_missing_is_told_what_it_missed(directory: Path) -> None:
    write("target_incomplete.py", "\nimport nowhere_at_all")
    assert refusal("target_incomplete:x") == (
        "importing target_incomplete raised ModuleNotFoundError: No module named 'nowhere_at_all'"
        f" ({directory}/target_incomplete.py, line 2)"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import json; json.loads('x')", "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_raises_is_told_what_and_in_which_of_its_lines(text: str, words: str, directory: Path) -> None:
    write("broken.py", f"\n{text}")
    assert refusal("broken.py") == f"importing broken.py raised {words} ({directory}/broken.py, line 2)"
    assert "mcp_hybrid_target_broken" not in sys.modules


def test_an_object_of_another_kind_is_told_its_type() -> None:
    expected = "; expected an MCPServer, a low-level Server or a FastMCP"
    write("wrong.py", "number = 3\nfrom mcp.server import MCPServer")
    assert refusal("wrong.py:number") == f"wrong.py:number is an object of type builtins.int{expected}"
    assert refusal("wrong.py:MCPServer") == (
        f"wrong.py:MCPServer is the class mcp.server.mcpserver.server.MCPServer{expected}"
    )
    assert refusal("wrong.py") == f"wrong.py holds no server{expected}"


def test_a_file_with_several_servers_is_told_their_names() -> None:
    write("several.py", f"{ONE}a, b = MCPServer('a'), MCPServer('b')")
    assert refusal("several.py") == "several.py holds several servers; name one: several.py:a, several.py:b"


# What can be served


def test_the_three_kinds_are_served() -> None:
    import fastmcp  # noqa: PLC0415 - the other tests run without it

    kinds: list[tuple[Any, str]] = [
        (MCPServer("one"), "MCPServer"),
        (Server("one"), "low-level Server"),
        (fastmcp.FastMCP("one"), "FastMCP"),
    ]
    for target, kind in kinds:
        assert kind_of(target) == kind
        assert isinstance(as_lowlevel(target), Server)
        assert as_lowlevel(target).name == "one"


def test_fastmcp_is_not_imported_to_recognise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fastmcp", raising=False)
    assert kind_of(object()) is None
    assert "fastmcp" not in sys.modules


def test_an_object_that_cannot_be_served_is_told_its_type() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^an object of type builtins\.dict cannot be served; expected an MCP"
    ):
        as_lowlevel({})


def test_a_wrapper_that_keeps_its_server_elsewhere_is_told_its_type() -> None:
    emptied = MCPServer("one")
    del emptied._lowlevel_server
    with pytest.raises(ConfigurationError, match="MCPServer cannot be served: this version keeps its server elsewhere"):
        as_lowlevel(emptied)

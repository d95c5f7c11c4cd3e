"""The README holds: its commands are run as printed, its code is served, and what it and the documents name exists.

Every block of code is preceded by a comment that names it (`<!-- runs: session -->`), and every name has its test here.
Commands run in a copy of the tree that `make serve` has set up by itself; only the port is another one.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json
from typer.main import get_command

from clients.installing import NODE, find_node
from harness.asgi import App, AsgiClient
from harness.environments import make_environment
from harness.mcp import Conversation, body, headers, tool
from harness.process import command, free_port
from harness.terminal import Terminal
from harness.tools import need
from mcp_hybrid.cli import app as command_line
from mcp_hybrid.sessions.seal import fresh_key
from mcp_hybrid.settings import CONFIG_VARIABLE, FIELDS, load, variable

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]
CODE = re.compile(
    r"^(?:<!-- (?P<kind>\w+): (?P<name>[\w.-]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

BLOCKS = {found["name"]: found["text"] for found in CODE.finditer(README)}
OTHERS_OPTIONS = {
    *("--quiet", "--now", "--since", "--fail-with-body"),  # pip, systemctl, journalctl, curl
    *("--file", "--tag", "--build", "--detach", "--config"),  # Docker, Caddy
    *("--graceful-timeout", "--spec-version"),  # Hypercorn, the conformance suite
    *("--timeout-graceful-shutdown", "--reload", "--interface"),  # uvicorn, Granian
}
"""Options of other programs that the documents use."""
SET_UP = 300.0
"""Seconds that `make serve` may take: it makes a virtual environment and downloads what is needed."""


@pytest.fixture
def curl() -> None:
    need("curl")


needs_curl = pytest.mark.usefixtures("curl")


def test_every_block_has_a_name_and_every_name_has_a_test() -> None:
    blocks = list(CODE.finditer(README))
    assert all(found["name"] for found in blocks), [found["text"] for found in blocks if not found["name"]]
    assert len(BLOCKS) == len(blocks)
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in BLOCKS if f'"{name}"' not in source] == []


# A copy of the tree, set up and serving


@dataclass
class Home:
    """Where `make serve` is running."""

    folder: Path
    port: int
    log: Path

    def printed(self, name: str) -> str:
        """Give a block's commands with the port that is served here."""
        return BLOCKS[name].replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")

    def run(
        self, script: str, cwd: Path | None = None, timeout: float = 60, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run commands to their end, with the `mcp-hybrid` of this copy on the search path."""
        return subprocess.run(
            ["sh", "-ec", script],
            cwd=cwd or self.folder,
            env=self.environment() | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        environ = clean_environment()
        return environ | {"PATH": f"{self.folder / '.venv' / 'bin'}:{environ['PATH']}"}


def clean_environment() -> dict[str, str]:
    """Give an environment that shows nothing of this checkout, its settings or its virtual environment."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MCP_HYBRID_", "PYTHON", "VIRTUAL_ENV"))}
    return environ | {"PATH": environ["PATH"].replace(f"{Path(sys.executable).parent}:", "")}


@contextmanager
def background(script: str, port: int, env: Mapping[str, str], cwd: Path, within: float) -> Iterator[Path]:
    """Run commands that serve until they are stopped, once the port answers; gives the file of what they write."""
    log = cwd / f"log-{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-ec", script], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + within
            while not answers(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield log
            os.killpg(process.pid, signal.SIGINT)  # what ctrl-C does
            process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Copy what a clone would have, and run `make serve` there as a stranger would."""
    need("make")
    need("git")
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    folder = tmp_path_factory.mktemp("clone") / "mcp-hybrid"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    if os.environ.get("TESTS_TIER") != "all":
        set_up_by_hand(folder)
    port = free_port()
    env = clean_environment() | {"PYTHON": sys.executable, "MCP_HYBRID_SERVER__PORT": str(port)}
    with background(BLOCKS["make-serve"], port, env, folder, SET_UP) as log:
        yield Home(folder, port, log)
    assert '"stopped"' in log.read_text()


def set_up_by_hand(folder: Path) -> None:
    """Make the virtual environment that `make serve` would make, with the packages of this one: no download.

    The tier `all` has `make serve` do it, and whoever runs the tests has had `make test` do it.
    """
    place = folder / ".venv"
    with (make_environment(place) / "these.pth").open("a", encoding="utf-8") as paths:
        paths.write(f"{folder / 'src'}\n")
    for name in ("mcp-hybrid", "hypercorn"):
        script = Path(command(name)[0]).read_text(encoding="utf-8").partition("\n")[2]
        (place / "bin" / name).write_text(f"#!{place / 'bin' / 'python'}\n{script}", encoding="utf-8")
        (place / "bin" / name).chmod(0o755)
    (place / ".runtime").touch()


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    """Give a directory with the README's Python files."""
    for name, text in BLOCKS.items():
        if name.endswith(".py"):
            (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


# The first screen


@pytest.mark.process
def test_make_serve_sets_itself_up_and_says_where_it_serves(home: Home) -> None:
    until = time.monotonic() + 10
    while f'"url":"http://127.0.0.1:{home.port}/mcp"' not in home.log.read_text():
        assert time.monotonic() < until, home.log.read_text()
        time.sleep(0.05)
    assert "http://127.0.0.1:8000/mcp" in README


@pytest.mark.process
def test_make_test_runs_the_tier_of_that_name() -> None:
    # Not run: these tests are part of it.
    done = subprocess.run(
        ["make", "-n", *BLOCKS["make-test"].split()[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "tools/run_tests.py test" in done.stdout


@needs_curl
@pytest.mark.outside
def test_curl_without_a_session_lists_and_calls(home: Home) -> None:
    done = home.run(home.printed("stateless"))
    assert done.returncode == 0, done.stderr
    listed, called = (from_json(answer) for answer in re.split(r"(?<=\})(?=\{\"jsonrpc\")", done.stdout))
    assert "add" in [each["name"] for each in listed["result"]["tools"]]
    assert called["result"]["content"] == [{"type": "text", "text": "3"}]


@needs_curl
@pytest.mark.outside
def test_curl_in_a_session_gets_progress_lines_one_by_one(home: Home) -> None:
    process = subprocess.Popen(
        ["sh", "-ec", home.printed("session")],
        cwd=home.folder,
        env=home.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        lines = [(time.monotonic(), from_json(line[6:])) for line in process.stdout if line.startswith("data: {")]
    assert process.wait(10) == 0
    (*progress, (_, last)) = lines
    assert [message["params"]["progress"] for _, message in progress] == [1, 2, 3]
    assert {message["params"]["progressToken"] for _, message in progress} == {"mine"}
    assert last["result"]["content"][0]["text"] == "lift-off"
    arrived = [at for at, _ in progress]
    assert arrived[-1] - arrived[0] > 0.5, f"the tool reports for a second; the lines came at {arrived}"


@pytest.mark.process
def test_the_client_that_comes_along_shows_a_bar(home: Home) -> None:
    with Terminal(["sh", "-ec", home.printed("call")], home.environment(), home.folder) as terminal:
        assert terminal.ended() == 0, terminal.shown
    assert "━" in terminal.shown
    assert "100%" in terminal.shown
    assert "0 to go" in terminal.shown
    assert terminal.shown.rstrip().endswith("lift-off")


@pytest.mark.process
def test_the_client_that_comes_along_writes_lines_where_there_is_no_terminal(home: Home) -> None:
    done = home.run(home.printed("call"))
    assert done.stdout == "lift-off\n"
    assert done.stderr.splitlines() == ["progress 1/3 2 to go", "progress 2/3 1 to go", "progress 3/3 0 to go"]


@pytest.mark.outside
def test_mcp_inspector_lists_the_tools(home: Home) -> None:
    need("npx")
    assert f"Node {NODE[0]}.{NODE[1]} or newer" in README
    newer = f"{Path(find_node()).parent}:{home.environment()['PATH']}"  # the machine's, or where that is older, npm's
    done = home.run(home.printed("inspector"), timeout=300, PATH=newer)
    if done.returncode and re.search(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED.*registry|ETIMEDOUT", done.stderr):
        pytest.skip("npx cannot download the Inspector here")
    assert done.returncode == 0, done.stderr
    assert "add" in [each["name"] for each in from_json(done.stdout)["tools"]]


# Below it


@pytest.mark.process
@pytest.mark.parametrize("name", ["own", "hypercorn"])
def test_a_server_of_ones_own_is_served_with_progress(home: Home, kitchen: Path, name: str) -> None:
    port = free_port()
    assert "9000" in BLOCKS[name]
    with background(BLOCKS[name].replace("9000", str(port)), port, home.environment(), kitchen, 30):
        done = home.run(f"mcp-hybrid call http://127.0.0.1:{port}/mcp boil eggs=2")
    assert (done.stdout, done.stderr) == ("2 eggs\n", "progress 1/2\nprogress 2/2\n")


@pytest.mark.process
def test_check_names_ones_own_server(home: Home, kitchen: Path) -> None:
    assert "`mcp-hybrid check server.py`" in README
    for target in ("server.py", "server.py:mcp", "server:mcp"):
        assert "serves kitchen (MCPServer)" in home.run(f"mcp-hybrid check {target}", kitchen).stdout


@pytest.mark.process
def test_a_key_is_made_and_exported(home: Home) -> None:
    done = home.run(BLOCKS["key"] + "mcp-hybrid check")
    assert re.search(r"sessions\.keys +1 +environment MCP_HYBRID_SESSIONS__KEYS", done.stdout), done.stderr


def test_a_rotated_key_is_written_as_shown(tmp_path: Path) -> None:
    file = tmp_path / "rotation.toml"
    file.write_text(re.sub(r"<[^>]+>", lambda _: fresh_key(), BLOCKS["rotation"]), encoding="utf-8")
    assert len(load(environ={}, config=file).settings.sessions.keys) == 2


@pytest.mark.parametrize(("name", "path"), [("app.py", "/mcp"), ("api.py", "/tools/mcp")])
async def test_it_is_mounted_as_shown(kitchen: Path, name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "server.py" in BLOCKS
    monkeypatch.syspath_prepend(kitchen)
    for module in ("server", "app", "api"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    app: App = importlib.import_module(name.removesuffix(".py")).app
    for module in ("server", "app", "api"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    async with AsgiClient(app) as client:
        alone = await client.request("POST", path, headers(), body(tool("boil", {"eggs": 0})))
        assert alone.json()["result"]["content"][0]["text"] == "0 eggs"
        conversation = await Conversation.open(client, path=path)
        async with conversation.stream(tool("boil", {"eggs": 2}, token="t")) as exchange:
            *progress, last = await exchange.messages()
    assert [message["params"]["progress"] for message in progress] == [1, 2]
    assert last["result"]["content"][0]["text"] == "2 eggs"


# What is named exists


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def in_code(text: str) -> list[str]:
    """Give what stands in backticks or in a block of code."""
    blocks = [found["text"] for found in CODE.finditer(text)]
    return blocks + re.findall(r"`([^`\n]+)`", CODE.sub("", text))


def known_options() -> set[str]:
    commands: Any = get_command(command_line)
    every = [one for each in commands.commands.values() for one in (each, *getattr(each, "commands", {}).values())]
    ours = {option for each in every for parameter in each.params for option in parameter.opts}
    scripts = {
        option
        for folder in ("benchmarks", "tools")
        for script in (ROOT / folder).glob("*.py")
        for option in re.findall(r'add_argument\("(--[a-z-]+)"', script.read_text(encoding="utf-8"))
    }
    inspector = {"--cli", "--method"}
    return {option for option in ours if option.startswith("--")} | scripts | inspector | OTHERS_OPTIONS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_and_command_that_is_named_exists(document: str) -> None:
    code = "\n".join(in_code(text_of(document)))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)) <= known_options()
    commands: Any = get_command(command_line)
    assert set(re.findall(r"\bmcp-hybrid ([a-z][a-z-]*)", code)) <= set(commands.commands)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_setting_that_is_named_exists(document: str) -> None:
    code = in_code(text_of(document))
    sections = {key.partition(".")[0] for key in FIELDS if "." in key}
    dotted = {word for each in code for word in re.findall(r"(?<![\w./`])(\w+\.[a-z]\w*)(?![\w(])", each)}
    assert {word for word in dotted if word.partition(".")[0] in sections} <= {*FIELDS, "server.py", "app.py"}
    assigned = {found[1] for each in code if (found := re.fullmatch(r"(\w+) = \S+", each))}
    assert assigned <= set(FIELDS)
    variables = {name for each in code for name in re.findall(r"MCP_HYBRID_[A-Z_]+[A-Z]", each)}
    assert variables <= {CONFIG_VARIABLE, *map(variable, FIELDS)}


def test_every_setting_the_readme_names_without_a_section_exists() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", README))
    assert named - {"mask_error_details"} <= set(FIELDS)  # FastMCP's


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_into_the_tree_leads_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(document))
    missing = [link for link in links if "://" not in link and not (ROOT / document).parent.joinpath(link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", ["docs/design.md", "docs/rough-edges.md"])
def test_every_name_in_the_documents_is_one_of_the_sources(document: str) -> None:
    files = [file for folder in ("src", "tests", "config") for file in (ROOT / folder).rglob("*.*")]
    sources = "\n".join(file.read_text(encoding="utf-8") for file in files if file.suffix in {".py", ".toml"})
    words = set(re.findall(r"\w+", sources))
    names = {
        part
        for each in re.findall(r"`([A-Za-z_][\w.]*)(?:\(.*?\))?`", CODE.sub("", text_of(document)))
        for part in re.findall(r"\w+", each)
        if "_" in part or re.search(r"[a-z][A-Z]", part)
    }
    assert names - words == set()

"""docs/deploying.md holds: a machine is set up by its commands as they are printed, and serves through nginx and TLS.

The machine is a folder: `/opt` and `/etc` are below it, and what would change the real one (systemctl, apt-get, docker,
kubectl) is a stub that notes what it was told. All else is real.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydantic_core import from_json

from harness import environments
from harness.environments import WITHOUT_DOWNLOADS
from harness.mcp import body, headers, request
from harness.process import ServerProcess, free_port
from harness.proxies import is_old, nginx_with
from harness.tools import need
from mcp_hybrid.settings import FIELDS, load, variable

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
CODE = re.compile(
    r"^(?:<!-- (?P<kind>\w+): (?P<name>[\w.-]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
BLOCKS = {found["name"]: found["text"] for found in CODE.finditer(DOCUMENT)}
SERVER = """\
from mcp.server import MCPServer

mcp = MCPServer("deployed")


@mcp.tool()
def ping() -> str:
    return "pong"
"""
STUBS = ("systemctl", "journalctl", "apt-get", "docker", "kubectl", "nginx")
NAME = "mcp.example.org"


def test_every_block_has_a_name_and_every_name_has_a_test() -> None:
    blocks = list(CODE.finditer(DOCUMENT))
    assert all(found["name"] for found in blocks), [found["text"] for found in blocks if not found["name"]]
    assert len(BLOCKS) == len(blocks)
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in BLOCKS if f'"{name}"' not in source] == []


# A machine


@dataclass
class Machine:
    """A folder that the document's commands take for a machine."""

    root: Path

    @property
    def clone(self) -> Path:
        return self.root / "clone"

    @property
    def told(self) -> list[str]:
        """What the stubs were told."""
        return (self.root / "told").read_text(encoding="utf-8").splitlines()

    def here(self, text: str) -> str:
        """Give a text with the paths of the machine."""
        return re.sub(r"(?<![\w./])/(opt|etc)/", rf"{self.root}/\1/", text)

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def run(self, name: str, **env: str) -> str:
        """Run a block as root of the machine would, in the clone; give what it writes."""
        done = subprocess.run(
            ["sh", "-ec", self.here(BLOCKS[name])],
            cwd=self.clone,
            env={
                **clean_environment(),
                **WITHOUT_DOWNLOADS,
                "PATH": self.search_path,
                "TOLD": str(self.root / "told"),
                **env,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def search_path(self) -> str:
        return f"{self.root / 'stubs'}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MCP_HYBRID_")}


def make_machine(root: Path) -> Machine:
    machine = Machine(root)
    for folder in ("stubs", "clone", "opt", "etc/systemd/system", "etc/nginx/sites-enabled"):
        (root / folder).mkdir(parents=True)
    for name in STUBS:
        stub = root / "stubs" / name
        stub.write_text(f'#!/bin/sh\necho "{name} $*" >> "$TOLD"\n', encoding="utf-8")
        stub.chmod(0o755)
    python = root / "stubs" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {environments.__file__} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, machine.clone)
    for name in ("src", "config"):
        shutil.copytree(ROOT / name, machine.clone / name)
    (machine.clone / "server.py").write_text(SERVER, encoding="utf-8")
    (root / "told").touch()
    return machine


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """Give a machine on which nothing was done yet."""
    return make_machine(tmp_path / "machine")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Set a machine up, by the commands of "One machine"."""
    found = make_machine(tmp_path_factory.mktemp("machine"))
    found.run("install")
    shown = found.run("secrets").split()
    (found.root / "key").write_text(shown[-1], encoding="utf-8")
    found.path("/etc/mcp-hybrid/mcp-hybrid.toml").write_text(found.here(BLOCKS["machine"]), encoding="utf-8")
    found.run("systemd")
    found.run("nginx")
    found.path("/etc/nginx/sites-enabled/mcp-hybrid").write_text(found.here(BLOCKS["site"]), encoding="utf-8")
    make_certificate(found.path(f"/etc/letsencrypt/live/{NAME}"))
    return found


def make_certificate(folder: Path) -> None:
    """Write a certificate for the name in the document, that vouches for itself."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "fullchain.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "privkey.pem").write_bytes(private)


@contextmanager
def service(machine: Machine) -> Iterator[ServerProcess]:
    """Do what systemd does with the unit, on ports that are free."""
    unit = configparser.RawConfigParser()
    unit.read_string(machine.path("/etc/systemd/system/mcp-hybrid.service").read_text(encoding="utf-8"))
    secrets = machine.path("/etc/mcp-hybrid/secrets.env").read_text(encoding="utf-8").splitlines()
    assert unit["Service"]["EnvironmentFile"] == "/etc/mcp-hybrid/secrets.env"
    env = dict(line.split("=", 1) for line in secrets) | {variable("operator.port"): str(free_port())}
    start = shlex.split(machine.here(unit["Service"]["ExecStart"]))
    with ServerProcess(lambda port: [*start, "--port", str(port)], env) as process:
        yield process


@contextmanager
def site(machine: Machine, upstream: int) -> Iterator[ServerProcess]:
    """Run nginx with the site that was written on the machine."""
    text = machine.path("/etc/nginx/sites-enabled/mcp-hybrid").read_text(encoding="utf-8")
    assert (text.count("127.0.0.1:8000"), text.count("listen 443 ")) == (1, 1)
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    with nginx_with(lambda port: text.replace("listen 443 ", f"listen 127.0.0.1:{port} ")) as process:
        yield process


def post(port: int, message: Any, *more: tuple[str, str]) -> httpx2.Response:
    return httpx2.post(f"http://127.0.0.1:{port}/mcp", content=body(message), headers=headers(None, None, *more))


# One process


@pytest.mark.process
@pytest.mark.parametrize(("name", "granted"), [("loopback", False), ("page", True)])
def test_one_process_serves_on_loopback_and_a_page_if_told_to(bare: Machine, name: str, granted: bool) -> None:
    env = {"PATH": bare.search_path}

    def argv(port: int) -> list[str]:
        # The working directory is where server.py is.
        script = f"cd {bare.clone}; {variable('server.port')}={port} exec env {BLOCKS[name]}"
        return ["sh", "-ec", script]

    with ServerProcess(argv, env) as server:
        answer = post(server.port, request("tools/list"), ("origin", "http://localhost:5173"))
        assert [tool["name"] for tool in answer.json()["result"]["tools"]] == ["ping"]
        assert ("access-control-allow-origin" in answer.headers) is granted


# One machine


@pytest.mark.long
@pytest.mark.process
def test_a_machine_that_was_set_up_serves_through_nginx_and_tls(machine: Machine) -> None:
    need("curl")
    key = (machine.root / "key").read_text(encoding="utf-8")
    folder = machine.path(f"/etc/letsencrypt/live/{NAME}")
    with service(machine) as server, site(machine, server.port) as proxy:
        script = BLOCKS["try"]
        assert script.startswith("curl ")
        where = f"--silent --cacert {folder}/fullchain.pem --connect-to {NAME}:443:127.0.0.1:{proxy.port}"
        for given, status, expected in ((key, 0, "ping"), ("", 22, "error")):
            done = subprocess.run(
                ["sh", "-ec", script.replace("curl ", f"curl {where} --write-out '\\n%{{http_version}}' ", 1)],
                env=clean_environment() | {"KEY": given},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == status, done.stderr
            answer, version = done.stdout.rsplit("\n", 1)
            assert expected in answer
            assert from_json(answer)["jsonrpc"] == "2.0"
            assert version == "2"


@pytest.mark.long
@pytest.mark.process
def test_its_settings_are_accepted_and_shown(machine: Machine) -> None:
    shown = machine.run("check")
    assert re.search(rf"security\.allowed_hosts +{NAME} +file ", shown)
    assert "serves deployed (MCPServer)" in shown
    assert "API keys (1 in " in shown


@pytest.mark.long
@pytest.mark.process
def test_its_files_are_where_the_unit_looks_and_secrets_are_not_for_everybody(machine: Machine) -> None:
    assert machine.path("/etc/mcp-hybrid/secrets.env").stat().st_mode & 0o777 == 0o600
    assert machine.path("/etc/systemd/system/mcp-hybrid.service").exists()
    assert (machine.root / "key").read_text(encoding="utf-8") not in machine.path(
        "/etc/mcp-hybrid/api-keys.toml"
    ).read_text(encoding="utf-8")
    assert machine.told[:2] == ["systemctl daemon-reload", "systemctl enable --now mcp-hybrid"]


@pytest.mark.process
def test_nginx_is_checked_before_it_is_reloaded(bare: Machine) -> None:
    bare.run("reload-nginx")
    assert bare.told == ["nginx -t", "systemctl reload nginx"]


@pytest.mark.process
def test_caddy_takes_the_file_as_it_is(bare: Machine) -> None:
    program = need("caddy")
    here = {"XDG_DATA_HOME": str(bare.root), "XDG_CONFIG_HOME": str(bare.root), "HOME": str(bare.root)}
    told, _, command_ = BLOCKS["caddy"].strip().partition(" caddy run ")
    assert told == f"MCP_SITE={NAME} MCP_BUFFER=buffer_requests"
    told = told if is_old(program) else f"MCP_SITE={NAME}"
    validated = subprocess.run(
        ["sh", "-ec", f"{told} caddy validate --adapter caddyfile {command_}"],
        cwd=bare.clone,
        env=clean_environment() | here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Valid configuration" in validated.stdout, validated.stderr


@pytest.mark.process
def test_logs_are_where_systemd_keeps_them(bare: Machine) -> None:
    bare.run("logs")
    assert bare.told == ["journalctl -u mcp-hybrid -o cat --since today"]


# Several workers, containers


@pytest.mark.process
def test_a_redis_is_told_by_the_file_of_secrets(bare: Machine) -> None:
    bare.path("/etc/mcp-hybrid").mkdir()
    bare.run("redis")
    secrets = bare.path("/etc/mcp-hybrid/secrets.env").read_text(encoding="utf-8")
    environ = dict(line.split("=", 1) for line in secrets.splitlines())
    assert load(environ=environ).settings.backplane == "redis://127.0.0.1:6379/0"
    assert bare.told == ["apt-get install -y redis-server", "systemctl restart mcp-hybrid"]


@pytest.mark.process
def test_docker_and_compose_are_given_files_that_exist(bare: Machine) -> None:
    bare.run("docker")
    bare.run("compose")
    assert bare.told == [
        "docker build --file config/Dockerfile --tag mcp-hybrid .",
        "docker compose --file config/compose.yaml up --build --detach",
    ]
    for file in ("config/Dockerfile", "config/compose.yaml"):
        assert (bare.clone / file).exists()
    keys = tomllib.loads((bare.clone / "config" / "api-keys.toml").read_text(encoding="utf-8"))
    assert [key["owner"] for key in keys["keys"]] == ["alice"]
    assert "MCP_HOST" in (bare.clone / "config" / "compose.yaml").read_text(encoding="utf-8")


def test_keys_that_were_made_in_a_clone_are_not_committed() -> None:
    assert "config/api-keys.toml" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_an_image_of_ones_own_names_a_setting() -> None:
    base, copy, env = BLOCKS["yours"].strip().splitlines()
    assert base == "FROM mcp-hybrid"
    name, _, path = env.removeprefix("ENV ").partition("=")
    assert name == variable("target")
    assert copy.split()[-1] + copy.split()[1] == path


@pytest.mark.process
def test_kubernetes_is_given_a_file_that_exists(bare: Machine) -> None:
    bare.run("kubernetes")
    assert bare.told == ["kubectl apply -f config/kubernetes.yaml", "kubectl rollout status deployment/mcp-hybrid"]
    assert (bare.clone / "config" / "kubernetes.yaml").exists()


# What is named


def test_every_setting_on_the_check_list_is_one() -> None:
    _, _, check_list = DOCUMENT.partition("## Check list")
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", check_list))
    assert named <= set(FIELDS)
    assert {"sessions.keys", "auth.api_keys", "security.allowed_hosts", "limits.requests"} <= named


def test_every_heading_that_is_linked_is_there() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).strip().lower().replace(" ", "-")
        for line in DOCUMENT.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\(#([\w-]+)\)", DOCUMENT)) <= headings

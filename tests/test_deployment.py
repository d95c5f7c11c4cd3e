"""The files of `config/` for systemd, Kubernetes and Docker: what they name exists, and what they run runs.

There is neither a cluster nor a Docker here. What a container would run is run as a process instead, with its command,
its environment, its files and its probes.
"""

from __future__ import annotations

import configparser
import fnmatch
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from harness.containers import CONFIG, Container, Manifests
from harness.environments import WITHOUT_DOWNLOADS, make_environment
from harness.mcp import LEGACY, body, headers, initialize, request
from harness.process import POLL, ServerProcess, command, free_port, run_to_its_end
from harness.tools import need
from mcp_hybrid.sessions.seal import fresh_key
from mcp_hybrid.settings import FIELDS, Settings, load, variable

ROOT = CONFIG.parent
NAMES = ("127.0.0.1", "mcp.example.org")
DRAIN = Settings().server.drain_timeout
HARD_MARGIN = 10.0
"""Seconds beyond `server.drain_timeout` that whatever stops the server has to wait."""
PORT = Settings().server.port
SETTINGS = {variable(key) for key in FIELDS}


def post(port: int, message: Any, key: str | None, host: str = "mcp.example.org", session: str = "") -> httpx2.Response:
    more = [("host", host), *([("authorization", f"Bearer {key}")] if key else [])]
    sent = headers(session or None, LEGACY if session else None, *more)
    return httpx2.post(f"http://127.0.0.1:{port}/mcp", content=body(message), headers=sent, timeout=30)


def api_key(owner: str) -> tuple[str, str]:
    """Make an API key: the key, and the entry for the file of keys."""
    done = run_to_its_end("mcp-hybrid", "api-key", "new", "--owner", owner)
    key, _, entry = done.stdout.partition("\n\n")
    return key, entry


def seconds(text: str) -> float:
    """Read a time as systemd and Compose write it."""
    found = re.fullmatch(r"(\d+)(s|min)?", text)
    assert found is not None, text
    return int(found[1]) * (60 if found[2] == "min" else 1)


@contextmanager
def redis(arguments: list[str], folder: Path) -> Iterator[int]:
    """Run a Redis with the arguments of a manifest, on a free port of the loopback."""
    need("redis-server")
    port = free_port()
    process = subprocess.Popen(
        [*arguments, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)], stdout=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 20
        while subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True, check=False).returncode:
            assert time.monotonic() < until, "redis-server did not start"
            time.sleep(POLL)
        yield port
    finally:
        process.kill()
        process.wait()


# systemd


UNIT = CONFIG / "mcp-hybrid.service"


@pytest.fixture(scope="module")
def unit() -> configparser.RawConfigParser:
    found = configparser.RawConfigParser(strict=True)
    found.optionxform = str  # type: ignore[assignment, method-assign]  # names are not folded
    found.read_string(UNIT.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def verified(tmp_path: Path) -> Path:
    """Give the unit with the command that is installed here, as systemd looks whether there is one."""
    here = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    assert text.count("/opt/mcp-hybrid/bin/mcp-hybrid") == 1
    here.write_text(text.replace("/opt/mcp-hybrid/bin/mcp-hybrid", command("mcp-hybrid")[0]), encoding="utf-8")
    return here


@pytest.mark.process
def test_systemd_finds_nothing_wrong_with_the_unit(verified: Path) -> None:
    done = subprocess.run([need("systemd-analyze"), "verify", verified], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.process
def test_systemd_calls_the_unit_locked_up_well(verified: Path) -> None:
    done = subprocess.run(
        [need("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager", verified],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:]


def test_systemd_waits_for_calls_that_run_and_restarts_what_a_restart_can_help(
    unit: configparser.RawConfigParser,
) -> None:
    service = unit["Service"]
    assert seconds(service["TimeoutStopSec"]) >= DRAIN + HARD_MARGIN
    assert service["KillMode"] == "mixed", "SIGTERM is for the master; its workers are told by it"
    assert service["RestartPreventExitStatus"] == "2", "the exit code of a wrong setting"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"


@pytest.mark.process
def test_what_the_unit_starts_serves_reloads_and_stops(unit: configparser.RawConfigParser, tmp_path: Path) -> None:
    service = unit["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/mcp-hybrid")
    key, entry = api_key("alice")
    etc = "/etc/mcp-hybrid"
    files = {
        f"{etc}/mcp-hybrid.toml": f'[auth]\napi_keys = "{etc}/api-keys.toml"\n',
        f"{etc}/api-keys.toml": entry,
    }
    secrets = {"MCP_HYBRID_SESSIONS__KEYS": fresh_key()}
    with Container(arguments, secrets, files).running(tmp_path) as server:
        session = post(server.port, initialize(), key, host="localhost").headers["mcp-session-id"]
        subprocess.run(["sh", "-c", service["ExecReload"]], env={"MAINPID": str(server.pid)}, check=True)
        server.wait_for_log('"event":"reloaded"', within=60)
        answer = post(server.port, request("ping"), key, host="localhost", session=session)
        assert (answer.status_code, answer.headers["mcp-hybrid-route"]) == (200, "session")


# Kubernetes


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return Manifests()


@pytest.fixture
def pod(manifests: Manifests) -> dict[str, Any]:
    return manifests.pod("Deployment")


def test_kubernetes_probes_what_there_is(manifests: Manifests, pod: dict[str, Any], tmp_path: Path) -> None:
    settings = toml_of(manifests, tmp_path)
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"mcp": settings.server.port, "operator": settings.operator.port}
    assert settings.server.port == PORT
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("readiness", "liveness", "startup")}
    assert {probe["port"] for probe in probes.values()} == {"operator"}
    assert probes["readiness"]["path"].partition("?")[0] == "/readyz"
    assert probes["liveness"]["path"] == probes["startup"]["path"] == "/healthz"
    scraped = manifests.get("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert (scraped["prometheus.io/port"], scraped["prometheus.io/path"]) == ("9000", "/metrics")
    assert ports["operator"] == 9000


def toml_of(manifests: Manifests, folder: Path) -> Settings:
    file = folder / "mcp-hybrid.toml"
    file.write_text(manifests.get("ConfigMap")["data"]["mcp-hybrid.toml"], encoding="utf-8")
    return load(environ={}, config=file).settings


def test_kubernetes_waits_for_calls_that_run(manifests: Manifests, pod: dict[str, Any], tmp_path: Path) -> None:
    (container,) = pod["containers"]
    sleep, before = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    drain = toml_of(manifests, tmp_path).server.drain_timeout
    assert pod["terminationGracePeriodSeconds"] >= float(before) + drain + HARD_MARGIN


def test_kubernetes_sends_any_request_to_any_pod(manifests: Manifests, pod: dict[str, Any]) -> None:
    service, deployment = manifests.get("Service")["spec"], manifests.get("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    assert service["sessionAffinity"] == "None"
    assert deployment["replicas"] > 1
    for selector in (service["selector"], deployment["selector"]["matchLabels"]):
        assert selector.items() <= labels
    (container,) = pod["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == {"mcp"} <= ports
    assert {each["name"] for each in container["env"]} == {variable("sessions.keys"), variable("backplane")}


def test_kubernetes_lets_nobody_but_the_pods_reach_the_redis(manifests: Manifests) -> None:
    policy = manifests.get("NetworkPolicy", "mcp-hybrid-redis")["spec"]
    redis_labels = manifests.get("StatefulSet", "mcp-hybrid-redis")["spec"]["template"]["metadata"]["labels"]
    labels = manifests.get("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= redis_labels.items()
    assert not policy["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = policy["ingress"]
    (source,) = rule["from"]
    assert source["podSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "mcp-hybrid"), ("StatefulSet", "mcp-hybrid-redis")])
def test_kubernetes_gives_the_pods_no_more_than_they_need(manifests: Manifests, kind: str, name: str) -> None:
    found = manifests.pod(kind, name)
    assert found["automountServiceAccountToken"] is False
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in found["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} == set(container["resources"])


@pytest.mark.process
def test_what_a_pod_runs_serves_is_ready_and_stops(manifests: Manifests, pod: dict[str, Any], tmp_path: Path) -> None:
    key, entry = api_key("alice")
    secrets = {"session-keys": fresh_key(), "redis-password": "a-password", "api-keys.toml": entry}
    arguments = manifests.container("StatefulSet", "mcp-hybrid-redis", secrets).arguments
    (tmp_path / "data").mkdir()
    with redis(arguments, tmp_path / "data") as redis_port:
        where = manifests.secrets()["redis-url"].replace("replace this", secrets["redis-password"])
        assert "@mcp-hybrid-redis:6379/" in where
        secrets["redis-url"] = where.replace("mcp-hybrid-redis:6379", f"127.0.0.1:{redis_port}")
        container = manifests.container("Deployment", "mcp-hybrid", secrets)
        operator = free_port()
        here = {"MCP_HYBRID_OPERATOR__HOST": "127.0.0.1", "MCP_HYBRID_OPERATOR__PORT": str(operator)}
        with (
            container.running(tmp_path / "one", **here) as one,
            container.running(tmp_path / "two", **here | {"MCP_HYBRID_OPERATOR__PORT": str(free_port())}) as two,
        ):
            (spec,) = pod["containers"]
            one.wait_for_log('"serving"')
            for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                # As the kubelet asks: by the pod's address, without a credential.
                path = spec[probe]["httpGet"]["path"]
                answer = httpx2.get(f"http://127.0.0.1:{operator}{path}", headers={"host": "10.1.2.3:9000"})
                assert answer.status_code == 200, (probe, answer.text)
            metrics = httpx2.get(f"http://127.0.0.1:{operator}/metrics", headers={"host": "10.1.2.3:9000"})
            assert metrics.status_code == 200
            assert httpx2.get(f"http://127.0.0.1:{one.port}/metrics").status_code == 404
            session = post(one.port, initialize(), key).headers["mcp-session-id"]
            assert post(two.port, request("ping"), key, session=session).status_code == 200
            assert post(two.port, request("ping"), None, session=session).status_code == 401
            assert post(one.port, request("ping"), key, host="10.1.2.3:8000").status_code == 421
            one.stop(within=float(pod["terminationGracePeriodSeconds"]))


@pytest.mark.process
@pytest.mark.parametrize("missing", ["session-keys", "redis-url", "api-keys.toml"])
def test_a_pod_whose_secrets_were_not_filled_in_does_not_start(
    manifests: Manifests, tmp_path: Path, missing: str
) -> None:
    secrets = {"session-keys": fresh_key(), "redis-url": "redis://127.0.0.1:1/0", "api-keys.toml": api_key("alice")[1]}
    secrets[missing] = manifests.secrets()[missing]
    container = manifests.container("Deployment", "mcp-hybrid", secrets)
    started = container.running(tmp_path, MCP_HYBRID_OPERATOR__HOST="127.0.0.1")
    with pytest.raises(AssertionError, match="the server did not start:\nmcp-hybrid: "), started:
        pass


# Docker


class Image:
    """The instructions of a Dockerfile, by stage."""

    def __init__(self, path: Path = CONFIG / "Dockerfile") -> None:
        self.stages: list[list[tuple[str, str]]] = []
        text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for line in filter(None, re.sub(r"\\\n\s*", " ", text).splitlines()):
            instruction, _, rest = line.partition(" ")
            if instruction == "FROM":
                self.stages.append([])
            self.stages[-1].append((instruction, rest.strip()))

    def all(self, instruction: str, stage: int = -1) -> list[str]:
        return [rest for name, rest in self.stages[stage] if name == instruction]

    def one(self, instruction: str) -> str:
        (found,) = self.all(instruction)
        return found

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for line in self.all("ENV") for pair in shlex.split(line))


@pytest.fixture(scope="module")
def image() -> Image:
    return Image()


def test_the_image_runs_as_nobody_and_hears_signals_itself(image: Image) -> None:
    assert image.one("USER") == "10001:10001"
    assert yaml.safe_load(image.one("ENTRYPOINT")) == ["mcp-hybrid"], "in exec form: a shell would keep SIGTERM"
    assert yaml.safe_load(image.one("CMD")) == ["serve"]
    assert image.one("STOPSIGNAL") == "SIGTERM"
    assert image.one("EXPOSE") == str(PORT)
    assert {name for name in image.environment() if name.startswith("MCP_HYBRID_")} <= SETTINGS


def test_what_the_image_is_made_of_is_sent_to_docker(image: Image) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    kept = [pattern[1:] for pattern in ignored if pattern.startswith("!")]
    assert ignored[0] == "*"
    for line in image.all("COPY", stage=0):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


@pytest.mark.long
@pytest.mark.process
def test_the_commands_of_the_image_make_one_that_serves_and_is_healthy(image: Image, tmp_path: Path) -> None:
    source, wheels, venv = tmp_path / "src", tmp_path / "wheels", tmp_path / "venv"
    source.mkdir()
    for line in image.all("COPY", stage=0):
        *names, _ = line.split()
        for name in names:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
    make_environment(venv)
    path = f"{venv / 'bin'}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MCP_HYBRID_"))}
    env = {**clean, **WITHOUT_DOWNLOADS, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for stage in (0, 1):
        for run in image.all("RUN", stage):
            # The cache only spares CI a second download.
            script = run.replace("/wheels", str(wheels)).replace("--no-cache-dir ", "")
            subprocess.run(["sh", "-ec", script], cwd=source, env=env, check=True)
    assert not wheels.exists()

    entry = [*yaml.safe_load(image.one("ENTRYPOINT")), *yaml.safe_load(image.one("CMD"))]
    here = image.environment() | {"MCP_HYBRID_SERVER__HOST": "127.0.0.1", "PATH": path}
    health = yaml.safe_load(image.one("HEALTHCHECK").partition("CMD ")[2])
    with ServerProcess(lambda port: [*entry, "--port", str(port)], here, cwd=tmp_path) as server:
        assert post(server.port, request("ping"), None, host="localhost").status_code == 200
        check = [part.replace(f":{PORT}/", f":{server.port}/") for part in health]
        subprocess.run(check, env=env, check=True)
        server.kill()
        assert subprocess.run(check, env=env, capture_output=True, check=False).returncode == 1


@pytest.mark.process
def test_the_image_does_not_serve_everybody_unless_told_to(image: Image) -> None:
    start = [*yaml.safe_load(image.one("CMD")), "--port", str(free_port())]
    done = run_to_its_end("mcp-hybrid", *start, **image.environment())
    assert done.returncode == 2
    assert "--allow-anonymous" in done.stderr


# Compose


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIG / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_compose_waits_for_calls_that_run_and_shows_the_redis_to_nobody(compose: dict[str, Any]) -> None:
    ours, redis_ = compose["services"]["mcp-hybrid"], compose["services"]["redis"]
    assert (CONFIG / ours["build"]["context"] / ours["build"]["dockerfile"]).exists()
    assert seconds(ours["stop_grace_period"]) >= DRAIN + HARD_MARGIN
    assert ours["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert set(ours["environment"]) <= SETTINGS
    assert "ports" not in redis_
    assert redis_["networks"] == ["backplane"]
    assert compose["networks"]["backplane"] == {"internal": True}
    assert ours["read_only"] is True
    assert ours["cap_drop"] == ["ALL"]


@pytest.mark.process
def test_what_compose_runs_serves_by_any_worker_and_stops(compose: dict[str, Any], tmp_path: Path) -> None:
    ours, redis_ = compose["services"]["mcp-hybrid"], compose["services"]["redis"]
    key, entry = api_key("alice")
    session_key = fresh_key()
    (tmp_path / "data").mkdir()
    with redis(redis_["command"], tmp_path / "data") as redis_port:
        environment = {
            name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", re.sub(r"\$\{\w+:\?.*?\}", session_key, value))
            for name, value in ours["environment"].items()
        }
        environment[variable("backplane")] = environment[variable("backplane")].replace(
            "redis:6379", f"127.0.0.1:{redis_port}"
        )
        files = {f"/run/secrets/{name}": entry for name in ours["secrets"]}
        with Container(ours["command"], environment, files).running(tmp_path) as server:
            session = post(server.port, initialize(), key, host="localhost").headers["mcp-session-id"]
            for _ in range(4):
                assert post(server.port, request("ping"), key, host="localhost", session=session).status_code == 200
            os.kill(server.pid, signal.SIGTERM)
            assert server._running().wait(seconds(ours["stop_grace_period"])) == 0
            server.kill()

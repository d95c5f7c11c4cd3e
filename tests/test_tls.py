"""HTTPS: HTTP/1.1 and HTTP/2 by what the client offers, with a certificate of the test's own."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from harness.clients import PATIENCE
from harness.mcp import headers, request, tool
from harness.process import ServerProcess, free_port, run_to_its_end, serve

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])


def write_certificate(folder: Path, password: bytes | None = None) -> tuple[Path, Path]:
    """Write a certificate for this machine's own addresses, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    files = (folder / "tls.crt", folder / "tls.key")
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return files


def settings(certificate: Path, key: Path) -> dict[str, str]:
    return {"MCP_HYBRID_SERVER__CERTFILE": str(certificate), "MCP_HYBRID_SERVER__KEYFILE": str(key)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def trusting(files: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files[0]))


@pytest.fixture(scope="module")
def secure(files: tuple[Path, Path]) -> Iterator[ServerProcess]:
    with serve(env=settings(*files)) as server:
        server.wait_for_log('"serving"', PATIENCE)
        yield server


def url(server: ServerProcess) -> str:
    return server.url.replace("http://", "https://")


@pytest.mark.process
def test_the_log_says_https(secure: ServerProcess) -> None:
    assert f'"url":"{url(secure)}"' in secure.log


@pytest.mark.process
@pytest.mark.parametrize(("http2", "version"), [(False, "HTTP/1.1"), (True, "HTTP/2")])
def test_the_client_chooses_between_the_two_versions(
    secure: ServerProcess, trusting: ssl.SSLContext, http2: bool, version: str
) -> None:
    with httpx2.Client(http2=http2, verify=trusting, timeout=PATIENCE) as client:
        for id_ in range(3):
            answer = client.post(url(secure), headers=headers(), json=tool("add", {"a": 1, "b": id_}, id_))
            assert (answer.status_code, answer.http_version) == (200, version)
            assert answer.json()["result"]["content"][0]["text"] == str(1 + id_)


@pytest.mark.process
async def test_the_sdks_client_is_served_over_tls(secure: ServerProcess, trusting: ssl.SSLContext) -> None:
    async with (
        httpx2.AsyncClient(verify=trusting, timeout=PATIENCE) as http,
        Client(streamable_http_client(url(secure), http_client=http)) as client,
    ):
        assert not (await client.call_tool("add", {"a": 2, "b": 3})).is_error


@pytest.mark.process
def test_plain_http_is_not_served_there_and_hurts_nobody(secure: ServerProcess, trusting: ssl.SSLContext) -> None:
    with pytest.raises(httpx2.HTTPError):
        httpx2.post(secure.url, headers=headers(), json=request("ping"), timeout=PATIENCE)
    with httpx2.Client(verify=trusting, timeout=PATIENCE) as client:
        assert client.post(url(secure), headers=headers(), json=request("ping")).status_code == 200
    assert "Traceback" not in secure.log


@pytest.mark.process
def test_http2_without_tls_is_served_to_clients_that_know_it_beforehand() -> None:
    with serve() as server, httpx2.Client(http1=False, http2=True, timeout=PATIENCE) as client:
        answer = client.post(server.url, headers=headers(), json=request("ping"))
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")


# What cannot be served


def refusal(**env: str) -> str:
    done = run_to_its_end("mcp-hybrid", "serve", "--port", str(free_port()), **env)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line.removeprefix("mcp-hybrid: ")


@pytest.mark.process
@pytest.mark.parametrize("missing", ["CERTFILE", "KEYFILE"])
def test_one_without_the_other_is_refused(files: tuple[Path, Path], missing: str) -> None:
    given = {name: value for name, value in settings(*files).items() if not name.endswith(missing)}
    assert refusal(**given) == f"server.{missing.lower()} is not set: TLS needs both a certificate and its key"


@pytest.mark.process
def test_a_file_that_is_not_there_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    gone = tmp_path / "gone.key"
    assert refusal(**settings(files[0], gone)) == f"server.keyfile: {gone} cannot be read: No such file or directory"


@pytest.mark.process
def test_a_key_that_is_another_certificates_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = write_certificate(tmp_path)
    assert refusal(**settings(files[0], other)) == (
        "server.certfile and server.keyfile cannot be used together: KEY_VALUES_MISMATCH"
    )


@pytest.mark.process
def test_a_key_with_a_password_is_refused_instead_of_waiting_for_somebody_to_type_it(tmp_path: Path) -> None:
    assert "the key is encrypted" in refusal(**settings(*write_certificate(tmp_path, b"secret")))

"""An authorization server as far as a resource server sees it: keys, tokens it signs, and its key set over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from jwt.algorithms import get_default_algorithms

AUDIENCE = "https://mcp.example.org/mcp"
ISSUER = "https://login.example.org"

Private = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey


class SigningKey:
    """One key of an issuer's."""

    def __init__(self, kid: str | None, algorithm: str = "ES256") -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.private = make_private(algorithm)

    def public(self, **changes: Any) -> dict[str, Any]:
        """Give the public half as a key set lists it; `None` leaves a member out."""
        kind: Any = get_default_algorithms()[self.algorithm]
        listed = {**kind.to_jwk(self.private.public_key(), as_dict=True), "kid": self.kid, "use": "sig", **changes}
        return {name: value for name, value in listed.items() if value is not None}


def make_private(algorithm: str) -> Private:
    if algorithm.startswith("ES"):
        return generate_ec(SECP256R1())
    return Ed25519PrivateKey.generate() if algorithm == "EdDSA" else generate_rsa(65537, 2048)


class Issuer:
    """Signs tokens. The clock says what it takes for now."""

    def __init__(self, now: float, issuer: str = ISSUER, algorithm: str = "ES256") -> None:
        self.issuer = issuer
        self.now = now
        self.keys = [SigningKey("first", algorithm)]

    def rotate(self, kid: str) -> None:
        """Replace the keys by a new one."""
        self.keys = [SigningKey(kid, self.keys[0].algorithm)]

    def key_set(self) -> str:
        return json.dumps({"keys": [key.public() for key in self.keys]})

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Give the claims of a good token with some changed; `None` leaves one out."""
        usual = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "alice",
            "client_id": "desktop",
            "iat": int(self.now),
            "exp": int(self.now) + 600,
            "scope": "tools",
        }
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    def token(self, key: SigningKey | None = None, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """Sign a token, with the newest key if not with another."""
        key = key or self.keys[-1]
        named = {"kid": key.kid} if key.kid is not None else {}
        return jwt.encode(self.claims(**changes), key.private, key.algorithm, headers={**named, **(headers or {})})


class KeySetServer:
    """Serves an issuer's key set on a loopback port, and counts how often it is asked."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.asked = 0
        self.status = 200
        self.url = ""


@contextmanager
def serving(issuer: Issuer) -> Iterator[KeySetServer]:
    """Serve an issuer's keys over a real socket."""
    state = KeySetServer(issuer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked += 1
            answer(self, state.status, state.issuer.key_set())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http_server(Handler) as address:
        state.url = f"{address}/jwks.json"
        yield state


def answer(handler: BaseHTTPRequestHandler, status: int, body: str) -> None:
    """Answer a request with JSON."""
    data = body.encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run an HTTP server in a thread, and give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bearer(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"


def listed(keys: Sequence[dict[str, Any]]) -> str:
    """Give a key set of these keys."""
    return json.dumps({"keys": list(keys)})

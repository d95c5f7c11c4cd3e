"""JWTs: which are taken, and how the issuer's keys are had, kept and had again."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from mcp.server.auth.provider import AccessToken
from structlog.testing import capture_logs

from harness.issuer import AUDIENCE, ISSUER, Issuer, SigningKey, listed, serving
from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.security import jwks
from mcp_hybrid.security.jwks import FileKeys, Keys, RemoteKeys
from mcp_hybrid.security.unavailable import VerifierUnavailableError
from mcp_hybrid.security.verifiers import JwtVerifier

NOW = 1_800_000_000.0
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]


class FixedKeys:
    """Keys that are simply there."""

    def __init__(self, text: str, algorithms: list[str] = ALGORITHMS) -> None:
        self.keys = Keys(text, algorithms)

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        return self.keys.find(kid, algorithm)


def verifier(issuer: Issuer, **options: Any) -> JwtVerifier:
    usual: dict[str, Any] = {
        "issuer": ISSUER,
        "audience": [AUDIENCE],
        "algorithms": ALGORITHMS,
        "clock_skew": 60,
        "clock": lambda: NOW,
    }
    return JwtVerifier(FixedKeys(issuer.key_set()), **{**usual, **options})


def unsigned(issuer: Issuer) -> str:
    return jwt.encode(issuer.claims(), "", "none", headers={"kid": "first"})


def signed_with_the_public_key(issuer: Issuer) -> str:
    """Sign with HMAC, the public key being the secret (RFC 8725, section 2.1). PyJWT refuses to make such a token."""
    public = issuer.keys[0].private.public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    parts = [{"alg": "HS256", "typ": "JWT", "kid": "first"}, issuer.claims()]
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(text.encode(), secret)
    return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def tampered(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    claims = base64.urlsafe_b64encode(json.dumps(issuer.claims(sub="root")).encode()).rstrip(b"=").decode()
    return f"{head}.{claims}.{signature}"


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def with_head(head: bytes) -> Callable[[Issuer], str]:
    """Put another header before a token's claims."""
    return lambda issuer: ".".join([encoded(head), *issuer.token().split(".")[1:]])


def signed_claims(claims: bytes) -> Callable[[Issuer], str]:
    """Have the issuer sign these claims as they are, whatever they are."""

    def sign(issuer: Issuer) -> str:
        return jwt.api_jws.encode(claims, issuer.keys[0].private, "RS256", headers={"kid": "first"})

    return sign


def claims_with(more: str) -> Callable[[Issuer], str]:
    """Have the issuer sign good claims with others that come last, and so overrule those."""
    return lambda issuer: signed_claims(f"{json.dumps(issuer.claims())[:-1]},{more}}}".encode())(issuer)


DEEP = b"[" * 11000

REFUSED: dict[str, Callable[[Issuer], str]] = {
    **{
        f"a header {head[:40].decode('latin-1')}": with_head(head)
        for head in (
            b'{"alg":["RS256"]}',
            b'{"alg":{"a":1}}',
            b'{"alg":null}',
            b'{"alg":7}',
            b'{"alg":true}',
            b"{}",
            b"[]",
            b"null",
            b'"RS256"',
            b"7",
            b"",
            b"{",
            DEEP,
            b'{"alg":"RS256","x":' + DEEP,
            b'{"alg":"RS256","kid":{}}',
            b'{"alg":"RS256","kid":7}',
            b'{"alg":"RS256","kid":"\\ud800"}',
            b'{"alg":"RS256","typ":["JWT"]}',
            b'{"alg":"RS256","typ":{}}',
            b'{"alg":"RS256","kid":"first","crit":7}',
            b'{"alg":"RS256","x":NaN}',
            b'{"alg":"RS256","b64":false,"kid":"first"}',
            b'{"alg":"RS256","n":' + b"9" * 5000 + b"}",
            b"\xff\xfe",
        )
    },
    **{
        f"claims {more[:40]}": claims_with(more)
        for more in (
            r'"sub":"\ud800"',
            r'"client_id":"a\udfff"',
            r'"scope":"\ud800"',
            r'"x":{"\ud800":1}',
            '"x":NaN',
            '"x":' + "[" * 11000,
            f'"exp":{"9" * 5000}',
            '"exp":[1]',
            '"exp":{}',
            '"exp":null',
            '"exp":true',
            '"exp":-1e400',
            '"nbf":"soon"',
            '"nbf":[]',
            '"aud":{}',
            '"aud":[7]',
            '"aud":[[]]',
            '"aud":[]',
            '"iss":[]',
            '"iss":{}',
            '"sub":["alice"]',
            '"sub":{}',
            '"jti":7',
        )
    },
    "claims that are a list": signed_claims(b"[]"),
    "claims that are text": signed_claims(b'"alice"'),
    "claims that are nothing": signed_claims(b""),
    "claims that are no text": signed_claims(b"\xff"),
    "two parts": lambda issuer: issuer.token().rpartition(".")[0],
    "four parts": lambda issuer: f"{issuer.token()}.x",
    "five parts, as of an encrypted token": lambda issuer: f"{issuer.token()}.x.x",
    "a letter from elsewhere": lambda issuer: issuer.token().replace(".", ".\u0660", 1),
    "garbage": lambda _: "garbage",
    "three dots": lambda _: "...",
    "not ASCII": lambda _: "\xff\xfe",
    "expired": lambda issuer: issuer.token(exp=int(NOW) - 61),
    "expired for ever so little beyond the skew": lambda issuer: issuer.token(exp=int(NOW) - 60),
    "not yet valid": lambda issuer: issuer.token(nbf=int(NOW) + 61),
    "without an expiry": lambda issuer: issuer.token(exp=None),
    "an expiry that is text": lambda issuer: issuer.token(exp="never"),
    "an expiry without end": lambda issuer: issuer.token(exp=float("inf")),
    "an expiry beyond all numbers": lambda issuer: issuer.token(exp=10**400),
    "another audience": lambda issuer: issuer.token(aud="https://other.example.org"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "another issuer": lambda issuer: issuer.token(iss="https://evil.example.org"),
    "the issuer with a slash": lambda issuer: issuer.token(iss=f"{ISSUER}/"),
    "no issuer": lambda issuer: issuer.token(iss=None),
    "neither a subject nor a client": lambda issuer: issuer.token(sub=None, client_id=None),
    "a subject that is no text": lambda issuer: issuer.token(sub=7),
    "alg none": unsigned,
    "HS256 with the public key": signed_with_the_public_key,
    "claims changed after signing": tampered,
    "another's signature": lambda issuer: issuer.token(SigningKey("first", "RS256")),
    "an unknown key id": lambda issuer: issuer.token(SigningKey("unknown", "RS256")),
    "an algorithm that is not allowed": lambda issuer: issuer.token(headers={"alg": "RS512"}),
    "a logout token": lambda issuer: issuer.token(headers={"typ": "logout+jwt"}),
    "a critical extension": lambda issuer: issuer.token(headers={"crit": ["made-up"], "made-up": 1}),
    "a key id that is no text": lambda issuer: issuer.token(headers={"kid": "first"}).replace(
        issuer.token().split(".", maxsplit=1)[0],
        base64.urlsafe_b64encode(b'{"alg":"RS256","kid":["first"]}').rstrip(b"=").decode(),
    ),
}

RSA = Issuer(NOW, algorithm="RS256")
"""Its key takes a while to make, and no test changes it."""

KEY_SETS = {
    "nested too deep": '{"keys":' + "[" * 100_000,
    "a key nested too deep": '{"keys":[{"kty":"RSA","n":' + "[" * 100_000,
    "no text": '{"keys":[{"kid":"\\ud800"}]}',
    "a number beyond all bounds": '{"keys":[' + "9" * 5000 + "]}",
    "nothing": "",
    "a list": "[]",
    "keys that are an object": '{"keys":{}}',
}
"""What is no key set."""

ODD_KEYS: list[dict[str, Any]] = [
    {"kty": "RSA"},
    {"kty": ["RSA"]},
    {"kty": "RSA", "n": [], "e": {}},
    {"kty": "RSA", "n": 7, "e": 7},
    {"kty": "RSA", "n": "", "e": ""},
    {"kty": "RSA", "n": "AQAB", "e": "AQAB", "d": [], "p": 7},
    {"kty": "RSA", "n": "\u0660", "e": "AQAB"},
    {"kty": "EC", "crv": ["P-256"]},
    {"kty": "EC", "crv": {}, "x": 1, "y": 2},
    {"kty": "EC", "crv": "P-256", "x": None, "y": []},
    {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "Ed25519", "x": {}},
    {"kty": "RSA", "alg": ["RS256"], "use": {}, "kid": {}},
    {"kid": "k" * 100_000, "kty": "RSA", "n": "A"},
]
"""Members of a key set that are no keys."""


@pytest.mark.parametrize("what", REFUSED)
async def test_a_token_that_is_not_for_this_server_is_worth_nothing(what: str) -> None:
    token = REFUSED[what](RSA)
    assert await verifier(RSA).verify_token(token) is None
    assert await verifier(RSA).verify_token(RSA.token()) is not None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"exp": int(NOW) - 59}, id="expired within the skew"),
        pytest.param({"nbf": int(NOW) + 60}, id="valid within the skew"),
        pytest.param({"aud": ["https://other.example.org", AUDIENCE]}, id="one of several audiences"),
        pytest.param({"sub": None}, id="a client without a user"),
        pytest.param({"iat": int(NOW) + 3600}, id="a time of issue that nobody should rely on"),
    ],
)
async def test_a_token_that_is_for_this_server_is_taken(changes: dict[str, Any]) -> None:
    found = await verifier(RSA).verify_token(RSA.token(**changes))
    assert found is not None
    assert found.resource == AUDIENCE


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
@pytest.mark.parametrize("typ", [None, "JWT", "at+jwt", "application/at+jwt"])
async def test_each_kind_of_key_and_of_access_token_is_taken(algorithm: str, typ: str | None) -> None:
    issuer = RSA if algorithm == "RS256" else Issuer(NOW, algorithm=algorithm)
    assert await verifier(issuer).verify_token(issuer.token(headers={"typ": typ})) is not None


@pytest.mark.parametrize(
    ("changes", "scopes", "client"),
    [
        pytest.param({"scope": "a b"}, ["a", "b"], "desktop", id="RFC 9068"),
        pytest.param({"scope": None, "scp": ["a", "b"]}, ["a", "b"], "desktop", id="Okta"),
        pytest.param({"scope": None, "scp": "a b"}, ["a", "b"], "desktop", id="Entra"),
        pytest.param({"scope": None}, [], "desktop", id="none"),
        pytest.param({"client_id": None, "azp": "web"}, ["tools"], "web", id="azp"),
        pytest.param({"client_id": None}, ["tools"], "", id="no client"),
    ],
)
async def test_what_a_token_says_is_what_handlers_are_told(
    changes: dict[str, Any], scopes: list[str], client: str
) -> None:
    issuer = Issuer(NOW)
    token = issuer.token(**changes)
    found = await verifier(issuer).verify_token(token)
    assert found == AccessToken(
        token=token, client_id=client, scopes=scopes, expires_at=int(NOW) + 660, resource=AUDIENCE, subject="alice",
        claims=issuer.claims(**changes),
    )  # fmt: skip


async def test_an_algorithm_that_is_not_allowed_is_refused_even_where_a_key_for_it_is_known() -> None:
    assert await verifier(RSA, algorithms=["ES256", "PS256"]).verify_token(RSA.token()) is None


# Key sets


def test_only_usable_keys_of_a_set_are_used() -> None:
    good = SigningKey("good")
    keys = Keys(
        listed([
            good.public(),
            good.public(kid="encrypts", use="enc"),
            good.public(kid="other algorithm", alg="ES384"),
            good.public(kid="other curve", crv="P-384"),
            good.public(kid="broken", x="!"),
            {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
            {"kid": "nothing"},
        ]),
        ["ES256", "ES384", "EdDSA"],
    )  # fmt: skip
    assert keys.find("good", "ES256") is not None
    for kid in ("encrypts", "other curve", "broken", "secret", "nothing"):
        assert keys.find(kid, "ES256") is None
    assert keys.find("other algorithm", "ES256") is None
    assert keys.find("good", "EdDSA") is None


def test_without_an_id_the_only_key_is_meant_and_of_several_none() -> None:
    one, other = SigningKey("one"), SigningKey("other")
    assert Keys(listed([one.public()]), ALGORITHMS).find(None, "ES256") is not None
    assert Keys(listed([one.public(kid=None)]), ALGORITHMS).find("any", "ES256") is not None
    assert Keys(listed([one.public(), other.public()]), ALGORITHMS).find(None, "ES256") is None
    assert Keys(listed([one.public(), one.public()]), ALGORITHMS).find("one", "ES256") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 1}', "<html>"])
def test_what_is_no_key_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Keys(text, ALGORITHMS)


async def test_a_key_set_file_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_hybrid.security.watched.LOOK_EVERY", 0)
    issuer, file = Issuer(NOW), tmp_path / "jwks.json"
    with pytest.raises(ConfigurationError, match=r"auth\.jwks .* cannot be read"):
        FileKeys(file, ALGORITHMS)
    file.write_text(issuer.key_set())
    keys = FileKeys(file, ALGORITHMS)
    assert await keys.find("first", "ES256") is not None
    issuer.rotate("second key")
    file.write_text(issuer.key_set())
    assert await keys.find("second key", "ES256") is not None
    assert await keys.find("first", "ES256") is None


# Keys that are fetched


class Network:
    """Stands in for the network to the issuer."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.fetches = 0
        self.down = False
        self.delay = 0.0

    async def __call__(self) -> str:
        self.fetches += 1
        await anyio.sleep(self.delay)
        if self.down:
            raise OSError("no route to host")
        return self.issuer.key_set()


def remote() -> tuple[Network, RemoteKeys]:
    network = Network(Issuer(NOW))
    return network, RemoteKeys("https://login.example.org/jwks.json", ALGORITHMS, network)


async def test_keys_are_fetched_once_and_kept_for_their_lifetime(autojump_clock: object) -> None:
    network, keys = remote()
    for _ in range(3):
        assert await keys.find("first", "ES256") is not None
    assert network.fetches == 1
    await anyio.sleep(jwks.LIFETIME + 1)
    assert await keys.find("first", "ES256") is not None
    assert network.fetches == 2


async def test_a_key_that_was_withdrawn_is_good_for_no_longer_than_the_lifetime(autojump_clock: object) -> None:
    network, keys = remote()
    assert await keys.find("first", "ES256") is not None
    network.issuer.rotate("second")
    assert await keys.find("first", "ES256") is not None
    await anyio.sleep(jwks.LIFETIME + 1)
    assert await keys.find("first", "ES256") is None


async def test_a_key_that_was_rotated_in_is_found_at_once(autojump_clock: object) -> None:
    network, keys = remote()
    assert await keys.find("first", "ES256") is not None
    network.issuer.rotate("second")
    assert await keys.find("second", "ES256") is not None
    assert network.fetches == 2


async def test_many_requests_at_once_fetch_once(autojump_clock: object) -> None:
    network, keys = remote()
    network.delay = 1
    found: list[jwt.PyJWK | None] = []

    async def find(kid: str) -> None:
        found.append(await keys.find(kid, "ES256"))

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(find, "first")
    assert network.fetches == 1
    assert len(found) == 50
    assert None not in found
    network.issuer.rotate("second")
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(find, "second")
    assert network.fetches == 2
    assert None not in found


async def test_made_up_key_ids_do_not_hammer_the_issuer_nor_hide_a_rotation(autojump_clock: object) -> None:
    network, keys = remote()
    assert await keys.find("first", "ES256") is not None
    for number in range(1000):
        assert await keys.find(f"made-up-{number}", "ES256") is None
        await anyio.sleep(0.1)
    assert network.fetches <= jwks.BURST + 100 / jwks.INTERVAL + 1
    network.issuer.rotate("second")
    with anyio.fail_after(jwks.INTERVAL + 1):
        while await keys.find("second", "ES256") is None:
            await keys.find("made-up", "ES256")
            await anyio.sleep(0.1)


async def test_an_issuer_that_cannot_be_reached_makes_no_token_bad(autojump_clock: object) -> None:
    network, keys = remote()
    network.down = True
    for _ in range(20):
        with pytest.raises(VerifierUnavailableError):
            await keys.find("first", "ES256")
    assert network.fetches <= jwks.BURST
    network.down = False
    await anyio.sleep(jwks.INTERVAL)
    assert await keys.find("first", "ES256") is not None


async def test_known_keys_outlast_an_outage_of_a_day_and_unknown_ones_are_left_open(autojump_clock: object) -> None:
    network, keys = remote()
    assert await keys.find("first", "ES256") is not None
    network.down = True
    await anyio.sleep(jwks.STALE - 1)
    assert await keys.find("first", "ES256") is not None
    with pytest.raises(VerifierUnavailableError):
        await keys.find("rotated in, or made up", "ES256")
    await anyio.sleep(2)
    with pytest.raises(VerifierUnavailableError):
        await keys.find("first", "ES256")


async def test_a_slow_issuer_holds_up_one_request_and_that_for_seconds(autojump_clock: object) -> None:
    network, keys = remote()
    assert await keys.find("first", "ES256") is not None
    await anyio.sleep(jwks.LIFETIME + 1)
    network.delay = 3600
    waits: list[float] = []

    async def find() -> None:
        began = anyio.current_time()
        assert await keys.find("first", "ES256") is not None
        waits.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(find)
    assert sorted(waits)[:9] == [0] * 9
    assert max(waits) <= jwks.TIMEOUT


async def test_a_request_that_goes_away_while_it_fetches_leaves_the_others_their_turn(autojump_clock: object) -> None:
    network, keys = remote()
    network.delay = 1
    with anyio.move_on_after(0.5):
        await keys.find("first", "ES256")
    assert await keys.find("first", "ES256") is not None


@pytest.mark.parametrize("wrong", ["status", "body", "size", "nobody"])
async def test_what_comes_over_a_socket_is_a_key_set_or_nothing(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer(NOW)
    with serving(issuer) as server:
        good = RemoteKeys(server.url, ALGORITHMS)
        assert await good.find("first", "ES256") is not None
        if wrong == "status":
            server.status = 404
        elif wrong == "body":
            monkeypatch.setattr(issuer, "key_set", lambda: "<html>")
        elif wrong == "size":
            monkeypatch.setattr(jwks, "SIZE", 10)
        url = server.url if wrong != "nobody" else "http://127.0.0.1:1/"
        with pytest.raises(VerifierUnavailableError):
            await RemoteKeys(url, ALGORITHMS).find("first", "ES256")


# Hostile key sets


@pytest.mark.parametrize("what", KEY_SETS)
async def test_a_key_set_that_is_none_leaves_tokens_open(what: str) -> None:
    async def fetch() -> str:
        return KEY_SETS[what]

    with pytest.raises(ValueError, match=r"."):
        Keys(KEY_SETS[what], ALGORITHMS)
    with pytest.raises(VerifierUnavailableError):
        await RemoteKeys("https://login.example.org", ALGORITHMS, fetch).find("first", "RS256")


async def test_a_failure_nobody_foresaw_leaves_tokens_open() -> None:
    async def fetch() -> str:
        raise RecursionError

    with pytest.raises(VerifierUnavailableError):
        await RemoteKeys("https://login.example.org", ALGORITHMS, fetch).find("first", "RS256")


def test_odd_members_of_a_key_set_do_not_hide_the_good_ones() -> None:
    with capture_logs() as logs:
        keys = Keys(listed([*ODD_KEYS, *json.loads(RSA.key_set())["keys"]]), ALGORITHMS)
    assert keys.find("first", "RS256") is not None
    assert max(len(str(line)) for line in logs) < 600

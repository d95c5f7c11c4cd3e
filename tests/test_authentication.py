"""Who is let in, what the others are told, and whose a session is. Over ASGI, in one process."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.server.auth.provider import AccessToken
from structlog.testing import capture_logs

from harness import mcp
from harness.asgi import Answer
from harness.guarded import Guarded, Header, ask, opened, person, telling, text
from harness.hybrid import NOW, running
from harness.issuer import AUDIENCE, ISSUER, SigningKey, bearer
from mcp_hybrid import VerifierUnavailableError
from mcp_hybrid.security import api_keys, lapse

RESOURCE = "https://mcp.example.org/mcp"
DERIVED = "http://127.0.0.1:8000/.well-known/oauth-protected-resource/mcp"
WELL_KNOWN = "/.well-known/oauth-protected-resource"


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path)


def challenge(answer: Answer) -> str:
    value = answer.header("www-authenticate")
    assert value is not None
    return value


# Refusals

NONE = f'Bearer resource_metadata="{DERIVED}", scope="tools"'
INVALID = 'Bearer error="invalid_token", error_description="The token is not valid here.'

REFUSALS: dict[str, tuple[list[Header], int, str | None]] = {
    "nothing": ([], 401, NONE),
    "another scheme": ([("authorization", "Basic YWxpY2U6c2VjcmV0")], 401, NONE),
    "the scheme alone": ([("authorization", "Bearer")], 401, NONE),
    "a cookie": ([("cookie", "token=x")], 401, NONE),
    "an empty token": ([("authorization", "Bearer ")], 401, INVALID),
    "garbage": ([bearer("garbage")], 401, INVALID),
    "bytes": ([("authorization", "Bearer \xff\x00")], 401, INVALID),
    "a very long token": ([bearer("a" * 20_000)], 401, INVALID),
    "a header beyond all bounds": ([bearer("a" * 1_000_000)], 431, None),
    "a tab after the scheme": ([("authorization", "Bearer\tx")], 401, NONE),
    "a tab after a space": ([("authorization", "Bearer \tx")], 401, INVALID),
    "spaces and no token": ([("authorization", "Bearer   ")], 401, INVALID),
    "two tokens": ([("authorization", "Bearer a b")], 401, INVALID),
    "a key whose algorithm is a list": ([bearer("eyJhbGciOlsiUlMyNTYiXX0.e30.eA")], 401, INVALID),
    "an API key that is none": ([bearer("mh_" + "a" * 43)], 401, INVALID),
    "two headers": ([bearer("one"), bearer("two")], 400, None),
}


@pytest.mark.parametrize("what", REFUSALS)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PUT"])
async def test_whoever_has_no_good_token_is_told_what_to_do(guarded: Guarded, what: str, method: str) -> None:
    headers, status, words = REFUSALS[what]
    async with guarded.running() as setup:
        answer = await ask(setup.client, *headers, method=method)
        assert answer.status == status
        error = answer.json()["error"]
        assert error["code"] in (-32600, -32020)
        assert answer.header("mcp-hybrid-route") is None
        if words is None:
            assert answer.header("www-authenticate") is None
        else:
            assert challenge(answer).startswith(words)
            assert challenge(answer).endswith(NONE.removeprefix("Bearer "))
        assert len(setup.registry) == 0
        assert setup.example.started == []


TOKENS: dict[str, dict[str, Any]] = {
    "expired": {"exp": int(NOW) - 61},
    "not yet valid": {"nbf": int(NOW) + 61},
    "another audience": {"aud": "https://other.example.org"},
    "another issuer": {"iss": "https://evil.example.org"},
    "an unknown key": {"key": SigningKey("unknown")},
}


@pytest.mark.parametrize("what", TOKENS)
async def test_a_token_that_is_not_good_here_is_401_invalid_token(guarded: Guarded, what: str) -> None:
    async with guarded.running() as setup:
        answer = await ask(setup.client, guarded.token(**TOKENS[what]))
        assert answer.status == 401
        assert challenge(answer).startswith(INVALID)


@pytest.mark.parametrize("path", ["/mcp?access_token={}", "/mcp?token={}", "/mcp?authorization=Bearer%20{}"])
async def test_a_token_in_the_address_is_not_looked_at(guarded: Guarded, path: str) -> None:
    async with guarded.running() as setup:
        answer = await ask(setup.client, path=path.format(guarded.issuer.token()))
        assert (answer.status, challenge(answer)) == (401, NONE)


@pytest.mark.parametrize("credential", ["jwt", "key", "a lower-case scheme"])
async def test_whoever_has_a_good_token_is_let_in(guarded: Guarded, credential: str) -> None:
    jwt = guarded.token()
    sent = {
        "jwt": jwt,
        "key": bearer(guarded.key.key),
        "a lower-case scheme": (jwt[0], jwt[1].lower()[:7] + jwt[1][7:]),
    }
    async with guarded.running() as setup:
        answer = await ask(setup.client, sent[credential])
        assert (answer.status, answer.header("mcp-hybrid-route")) == (200, "stateless")


async def test_a_scope_that_is_missing_is_403_and_is_named(guarded: Guarded) -> None:
    async with guarded.running({"required_scopes": ["tools", "files"]}) as setup:
        answer = await ask(setup.client, guarded.token(scope="tools mail"))
        assert (answer.status, answer.json()["error"]["code"]) == (403, -32600)
        assert challenge(answer) == (
            'Bearer error="insufficient_scope", error_description="The token lacks the scope files.", '
            f'resource_metadata="{DERIVED}", scope="tools files"'
        )
        assert (await ask(setup.client, guarded.token(scope="files mail tools"))).status == 200
        # Letter by letter: no scope includes another unless the issuer writes it out.
        assert (await ask(setup.client, guarded.token(scope="tools files:read"))).status == 403


async def test_tokens_that_cannot_be_verified_now_are_503_and_never_401(guarded: Guarded) -> None:
    async with guarded.running({"jwks": "http://127.0.0.1:1/jwks.json"}) as setup:
        answer = await ask(setup.client, guarded.token())
        assert (answer.status, answer.json()["error"]["code"]) == (503, -32000)
        assert answer.header("retry-after") == "10"
        assert answer.header("www-authenticate") is None
        # What needs no issuer is not held up.
        assert (await ask(setup.client, bearer(guarded.key.key))).status == 200
        assert (await ask(setup.client, bearer("garbage"))).status == 401


async def test_every_refusal_can_be_read_by_a_page_of_an_allowed_origin(guarded: Guarded) -> None:
    page = ("origin", "https://app.example.org")
    async with guarded.running(cors={"allowed_origins": [page[1]]}) as setup:
        for credential, status in [(None, 401), (guarded.token(scope=""), 403)]:
            answer = await ask(setup.client, page, *([credential] if credential else []))
            assert answer.status == status
            assert answer.header("access-control-allow-origin") == page[1]
            assert "www-authenticate" in (answer.header("access-control-expose-headers") or "")
        # A preflight carries no credential, by the browser's rules.
        asking = [page, ("access-control-request-method", "POST"), ("access-control-request-headers", "authorization")]
        answer = await setup.client.request("OPTIONS", "/mcp", asking)
        assert (answer.status, answer.header("access-control-allow-headers")) == (204, "authorization")


# The metadata


async def test_the_metadata_says_where_tokens_are_had(guarded: Guarded) -> None:
    async with guarded.running({"resource": RESOURCE}) as setup:
        for path in (WELL_KNOWN, f"{WELL_KNOWN}/mcp"):
            answer = await setup.client.request("GET", path, [("origin", "https://anywhere.example.org")])
            assert answer.status == 200
            assert answer.header("access-control-allow-origin") == "*"
            assert answer.json() == {
                "resource": RESOURCE,
                "authorization_servers": [ISSUER],
                "scopes_supported": ["tools"],
                "bearer_methods_supported": ["header"],
            }
        expected = "https://mcp.example.org/.well-known/oauth-protected-resource/mcp"
        assert f'resource_metadata="{expected}"' in challenge(await ask(setup.client))


async def test_without_a_public_address_it_is_read_off_the_request(guarded: Guarded) -> None:
    async with guarded.running(security={"allowed_hosts": ["one.example.org", "two.example.org"]}) as setup:
        for host in ("one.example.org", "two.example.org:8443"):
            answer = await setup.client.request("GET", f"{WELL_KNOWN}/mcp", [("host", host)])
            assert answer.json()["resource"] == f"http://{host}/mcp"
            assert answer.header("cache-control") == "no-store"
            assert f'"http://{host}{WELL_KNOWN}/mcp"' in challenge(await ask(setup.client, ("host", host)))


async def test_a_host_that_would_break_out_of_the_challenge_does_not(guarded: Guarded) -> None:
    async with guarded.running(security={"allowed_hosts": ["*"]}) as setup:
        answer = await ask(setup.client, ("host", 'x", error="y'))
        assert challenge(answer) == NONE.replace("127.0.0.1:8000", "localhost")


@pytest.mark.parametrize(("setting", "path"), [("/", "/"), ("/mcp/", "/mcp"), ("/a/b", "/a/b")])
async def test_the_challenge_points_to_the_metadata_wherever_the_endpoint_is(
    guarded: Guarded, setting: str, path: str
) -> None:
    async with guarded.running(path=setting) as setup:
        where = challenge(await ask(setup.client, path=path)).partition('resource_metadata="http://127.0.0.1:8000')[2]
        answer = await setup.client.request("GET", where.partition('"')[0])
        assert answer.json()["resource"] == f"http://127.0.0.1:8000{path}"


async def test_a_proxy_that_takes_off_a_path_can_ask_with_it(guarded: Guarded) -> None:
    async with guarded.running({"resource": "https://example.org/tools/mcp"}) as setup:
        assert (await setup.client.request("GET", f"{WELL_KNOWN}/tools/mcp")).status == 200


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("OPTIONS", 204), ("POST", 405), ("DELETE", 405)])
async def test_other_methods_at_the_metadata(guarded: Guarded, method: str, status: int) -> None:
    async with guarded.running() as setup:
        answer = await setup.client.request(method, WELL_KNOWN)
        assert answer.status == status
        assert answer.header("access-control-allow-origin") == "*"
        assert status == 405 or answer.body == b""


async def test_the_host_gate_stands_before_the_metadata_too(guarded: Guarded) -> None:
    async with guarded.running() as setup:
        assert (await setup.client.request("GET", WELL_KNOWN, [("host", "evil.example.com")])).status == 421


async def test_api_keys_alone_name_no_authorization_server(guarded: Guarded) -> None:
    async with guarded.running({"issuer": None, "jwks": None, "audience": None}) as setup:
        assert challenge(await ask(setup.client)) == 'Bearer scope="tools"'
        assert (await setup.client.request("GET", WELL_KNOWN)).status == 404


async def test_without_authentication_there_is_nothing_of_it() -> None:
    async with running() as setup:
        assert (await setup.client.request("GET", WELL_KNOWN)).status == 404
        assert not setup.app.authenticated


# Whose a session is


async def test_a_refreshed_token_keeps_its_session_and_its_stream(guarded: Guarded, autojump_clock: object) -> None:
    async with guarded.running() as setup:
        talk = await opened(setup.client, guarded.token())
        talk.credential = guarded.token(exp=int(NOW) + 6000, jti="another", scope="tools more")
        answer = await talk.post(mcp.request("ping"))
        assert (answer.status, answer.header("mcp-hybrid-route")) == (200, "session")
        async with setup.client.stream("GET", "/mcp", talk.headers(accept="text/event-stream")) as stream:
            assert (await stream.started())[0] == 200
        assert (await setup.client.request("DELETE", "/mcp", talk.headers())).status == 204


async def test_a_key_that_replaces_another_keeps_the_sessions_of_its_owner(guarded: Guarded) -> None:
    second = api_keys.make("alice", ["tools"])
    api_keys.append(guarded.keys, second)
    async with guarded.running() as setup:
        talk = await opened(setup.client, bearer(guarded.key.key))
        talk.credential = bearer(second.key)
        assert (await talk.post(mcp.request("ping"))).header("mcp-hybrid-route") == "session"


OTHERS: dict[str, dict[str, Any]] = {
    "another user": {"sub": "bob"},
    "the same user by another client": {"client_id": "web"},
    "the client itself": {"sub": None},
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("how", ["POST", "GET", "resume", "DELETE"])
async def test_a_session_of_somebody_else_is_as_if_it_never_was(
    guarded: Guarded, what: str, how: str, autojump_clock: object
) -> None:
    async with guarded.running() as setup:
        talk = await opened(setup.client, guarded.token())
        answers = set()
        for session in (talk.session, talk.session[:-4] + "AAAA"):
            other = person(setup.client, session, guarded.token(**OTHERS[what]))
            if how == "POST":
                answer = await other.post(mcp.request("ping"))
            elif how == "DELETE":
                answer = await setup.client.request("DELETE", "/mcp", other.headers())
            else:
                since = [("last-event-id", "standalone/1-0")] if how == "resume" else []
                answer = await setup.client.request("GET", "/mcp", other.headers(*since, accept="text/event-stream"))
            answers.add((answer.status, tuple(answer.headers), answer.body))
        ((status, _, _),) = answers
        assert status == 404
        assert (await talk.post(mcp.request("ping"))).header("mcp-hybrid-route") == "session"


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize("credential", [None, "expired", "garbage"])
async def test_a_session_id_opens_nothing_without_a_good_token(
    guarded: Guarded, method: str, credential: str | None, autojump_clock: object
) -> None:
    sent = {None: [], "expired": [guarded.token(exp=int(NOW) - 100)], "garbage": [bearer("x")]}[credential]
    async with guarded.running() as setup:
        talk = await opened(setup.client, guarded.token())
        headers = mcp.headers(talk.session, talk.version, *sent, accept=None)
        body = mcp.body(mcp.request("ping")) if method == "POST" else b""
        assert (await setup.client.request(method, "/mcp", headers, body)).status == 401
        assert (await talk.post(mcp.request("ping"))).status == 200


async def test_the_state_of_a_question_is_good_for_the_one_who_was_asked(guarded: Guarded) -> None:
    async with guarded.running(server=telling()) as setup:

        async def send(message: mcp.Json, credential: Header) -> Answer:
            whole = mcp.modern(message, {"elicitation": {}})
            return await setup.client.request("POST", "/mcp", mcp.modern_headers(whole, credential), mcp.body(whole))

        asked = (await send(mcp.tool("greet"), guarded.token())).json()["result"]
        (key,) = asked["inputRequests"]
        again = mcp.tool("greet", id=2)
        again["params"] |= {
            "inputResponses": {key: {"action": "accept", "content": {"name": "Ada"}}},
            "requestState": asked["requestState"],
        }
        stolen = await send(again, guarded.token(sub="bob"))
        assert (stolen.status, stolen.json()["error"]["code"]) == (400, -32602)
        assert text(await send(again, guarded.token(jti="refreshed"))) == "hello Ada"


# What handlers and the log know


@pytest.mark.parametrize("tool", ["whoami", "whoami_in_a_thread"])
async def test_handlers_find_the_token_on_every_route(guarded: Guarded, tool: str) -> None:
    expected = {"whoami": "alice desktop ['tools']", "whoami_in_a_thread": "alice"}[tool]
    async with guarded.running(server=telling()) as setup:
        message, credential = mcp.tool(tool), guarded.token()
        modern = mcp.modern(message)
        alone = await setup.client.request("POST", "/mcp", mcp.headers(None, None, credential), mcp.body(message))
        latest = await setup.client.request("POST", "/mcp", mcp.modern_headers(modern, credential), mcp.body(modern))
        inside = await (await opened(setup.client, credential)).post(message)
        assert [text(each) for each in (alone, latest, inside)] == [expected] * 3
        batch = mcp.headers(None, "2025-03-26", credential)
        both = await setup.client.request("POST", "/mcp", batch, mcp.body(mcp.batch(message, {**message, "id": 2})))
        assert [each["result"]["content"][0]["text"] for each in both.json()] == [expected] * 2


async def test_calls_of_two_people_in_one_process_do_not_see_each_others_token(
    guarded: Guarded, autojump_clock: object
) -> None:
    seen: dict[str, str] = {}
    async with guarded.running(server=telling()) as setup:

        async def call(user: str) -> None:
            headers = mcp.headers(None, None, guarded.token(sub=user))
            seen[user] = text(await setup.client.request("POST", "/mcp", headers, mcp.body(mcp.tool("whoami"))))

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(call, f"user-{number}")
    assert all(said.startswith(f"{user} ") for user, said in seen.items())


async def test_the_log_names_the_owner_and_never_the_token(guarded: Guarded) -> None:
    jwt, key = guarded.token(), bearer(guarded.key.key)
    with capture_logs() as logs:
        async with guarded.running() as setup:
            for credential in (jwt, key, guarded.token(sub="bob", scope="")):
                await ask(setup.client, credential)
            await ask(setup.client, bearer("garbage-in-the-header"))
    lines = [line for line in logs if line["event"] == "request"]
    assert [line.get("owner") for line in lines] == [f"{ISSUER}/alice/desktop", "mcp-hybrid/alice/api-key", None, None]
    assert [line.get("refused") for line in lines] == [None, None, "insufficient_scope", "unauthorized"]
    told = str(logs)
    for secret in (jwt[1][7:], key[1][7:], "garbage-in-the-header"):
        assert secret not in told


# Streams that stay open


async def test_a_stream_ends_in_order_when_its_token_expires(guarded: Guarded, autojump_clock: object) -> None:
    async with guarded.running() as setup:
        setup.clock.start()
        talk = await opened(setup.client, guarded.token(exp=int(NOW) + 1000))
        began = anyio.current_time()
        headers = talk.headers(accept="text/event-stream")
        async with setup.client.stream("GET", "/mcp", headers) as stream:
            assert (await stream.started())[0] == 200
            await anyio.sleep(1000)
            assert stream.running
            await stream.finished()
            assert stream.complete
            # The skew is added: that is how long the token is good.
            assert anyio.current_time() - began == pytest.approx(1060, abs=2)
        # The session is still there, for a fresh token.
        assert (await talk.post(mcp.request("ping"))).status == 401
        talk.credential = guarded.token(exp=int(NOW) + 5000)
        assert (await talk.post(mcp.request("ping"))).header("mcp-hybrid-route") == "session"
        async with setup.client.stream("GET", "/mcp", talk.headers(accept="text/event-stream")) as stream:
            assert (await stream.started())[0] == 200


@pytest.mark.parametrize("expires", [None, datetime.fromtimestamp(NOW + 86400, UTC)])
async def test_a_stream_ends_soon_after_its_key_was_revoked(
    guarded: Guarded, autojump_clock: object, monkeypatch: pytest.MonkeyPatch, expires: datetime | None
) -> None:
    monkeypatch.setattr("mcp_hybrid.security.watched.LOOK_EVERY", 0)
    guarded.key = api_keys.make("alice", ["tools"], expires)
    guarded.keys.write_text(guarded.key.entry)
    async with guarded.running() as setup:
        setup.clock.start()
        talk = await opened(setup.client, bearer(guarded.key.key))
        async with setup.client.stream("GET", "/mcp", talk.headers(accept="text/event-stream")) as stream:
            await stream.started()
            await anyio.sleep(3600)
            assert stream.running
            guarded.keys.write_text("")
            revoked = anyio.current_time()
            await stream.finished()
            assert stream.complete
            assert anyio.current_time() - revoked <= lapse.REVIEW + 1


async def test_a_subscription_ends_when_its_token_expires(guarded: Guarded, autojump_clock: object) -> None:
    async with guarded.running(server=telling()) as setup:
        setup.clock.start()
        message = mcp.modern(mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
        headers = mcp.modern_headers(message, guarded.token(exp=int(NOW) + 1000))
        async with setup.client.stream("POST", "/mcp", headers, mcp.body(message)) as stream:
            assert (await stream.started())[0] == 200
            *_, last = await stream.messages()
            assert last["error"] == {
                "code": -32600,
                "message": "The credential is no longer good. Come back with a fresh one.",
            }


async def test_that_a_token_cannot_be_verified_now_ends_no_stream(guarded: Guarded, autojump_clock: object) -> None:
    down = False

    class Flaky:
        async def verify_token(self, token: str) -> AccessToken | None:
            if down:
                raise VerifierUnavailableError("away")
            return AccessToken(token=token, client_id="x", scopes=["tools"])

    async with guarded.running(token_verifier=Flaky()) as setup:
        setup.clock.start()
        talk = await opened(setup.client, bearer("opaque"))
        async with setup.client.stream("GET", "/mcp", talk.headers(accept="text/event-stream")) as stream:
            await stream.started()
            down = True
            await anyio.sleep(10 * lapse.REVIEW)
            assert stream.running


async def test_a_call_that_runs_when_its_token_expires_is_finished(guarded: Guarded, autojump_clock: object) -> None:
    async with guarded.running() as setup:
        setup.clock.start()
        talk = await opened(setup.client, guarded.token(exp=int(NOW) + 10))
        answer = await talk.post(mcp.tool("count", {"steps": 2, "delay": 60}))
        assert text(answer) == "counted to 2"


@pytest.mark.parametrize("before", ["Bearer ", "Bearer  ", "Bearer     ", "bearer  ", "BEARER ", "bEaReR   "])
@pytest.mark.parametrize("kind", ["key", "token"])
async def test_a_scheme_of_any_case_and_spaces_before_the_token(guarded: Guarded, before: str, kind: str) -> None:
    async with guarded.running(server=telling()) as setup:
        token = guarded.key.key if kind == "key" else guarded.issuer.token()
        header = ("authorization", before + token)
        answer = await setup.client.request(
            "POST", "/mcp", mcp.headers(None, None, header), mcp.body(mcp.tool("whoami"))
        )
        assert text(answer).startswith("alice ")


class Unwritable:
    """A verifier that knows a user whose name is half a character."""

    async def verify_token(self, token: str) -> AccessToken | None:
        return AccessToken(token=token, client_id="c", scopes=["tools"], subject=f"{token}\ud800")


async def test_a_principal_that_cannot_be_written_is_401(guarded: Guarded) -> None:
    async with guarded.running(token_verifier=Unwritable()) as setup:
        assert (await ask(setup.client, bearer("x"))).status == 401
        assert (await ask(setup.client, bearer(guarded.key.key))).status == 200


# What a token is for


async def test_one_of_several_audiences_is_enough(guarded: Guarded) -> None:
    async with guarded.running({"audience": ["https://old.example.org", AUDIENCE]}) as setup:
        for aud in ("https://old.example.org", AUDIENCE, ["https://x.example.org", AUDIENCE]):
            assert (await ask(setup.client, guarded.token(aud=aud))).status == 200


async def test_the_resource_is_the_audience_where_none_is_named(guarded: Guarded) -> None:
    async with guarded.running({"audience": None, "resource": RESOURCE}) as setup:
        assert (await ask(setup.client, guarded.token(aud=RESOURCE))).status == 200
        assert (await ask(setup.client, guarded.token(aud="https://mcp.example.org"))).status == 401

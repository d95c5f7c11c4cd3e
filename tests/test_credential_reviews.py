"""How the credential of an open stream is looked at again: whatever the verifier does, the review ends in an answer."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken
from starlette.types import Scope

from harness import mcp
from harness.asgi import AsgiClient
from harness.hybrid import NOW, running
from harness.issuer import bearer
from mcp_hybrid import Caller, Cause, Fault, HybridApp, Owner, Settings
from mcp_hybrid.security import lapse
from mcp_hybrid.security.contained import AuthenticatorFailedError, ContainedAuthenticator
from mcp_hybrid.security.lapse import lapsed

ALICE = Caller(Owner("i", "alice", "c"))
GONE = Fault(Cause.UNAUTHORIZED, "no")
AWAY = Fault(Cause.VERIFIER_UNAVAILABLE, "not now")


class Scripted:
    """An authenticator that does one thing after another; the last one for ever."""

    def __init__(self, *steps: Caller | Fault | BaseException | None) -> None:
        self.steps = list(steps)
        self.asked = 0

    async def authenticate(self, scope: Scope) -> Caller | Fault:  # noqa: ARG002 - its place in the protocol
        step = self.steps[min(self.asked, len(self.steps) - 1)]
        self.asked += 1
        if isinstance(step, BaseException):
            raise step
        if step is None:
            await anyio.sleep_forever()
        assert isinstance(step, Caller | Fault)
        return step


async def seconds_until_lapsed(authenticator: Scripted, caller: Caller = ALICE) -> float:
    began = anyio.current_time()
    with anyio.fail_after(1_000_000):
        await lapsed(ContainedAuthenticator(authenticator), {}, caller, lambda: NOW + anyio.current_time() - began)
    return anyio.current_time() - began


@pytest.mark.parametrize(
    "accident",
    [
        pytest.param(RuntimeError("reset"), id="an error"),
        pytest.param(ExceptionGroup("", [OSError()]), id="a group"),
        pytest.param(SystemExit(2), id="an exit"),
        pytest.param(asyncio.CancelledError(), id="another loop's cancellation"),
        pytest.param(None, id="no answer"),
    ],
)
async def test_an_accident_of_the_verifier_ends_no_review(
    accident: BaseException | None, autojump_clock: object
) -> None:
    script = Scripted(accident, ALICE, accident, accident, ALICE, GONE)
    assert await seconds_until_lapsed(script) >= 6 * lapse.REVIEW
    assert script.asked == 6


@pytest.mark.parametrize("accident", [RuntimeError("always"), SystemExit(2), None], ids=["error", "exit", "no answer"])
async def test_a_verifier_that_always_fails_ends_the_stream(
    accident: BaseException | None, autojump_clock: object
) -> None:
    script = Scripted(accident)
    longest = lapse.FAILURES * (lapse.REVIEW + lapse.PATIENCE)
    assert await seconds_until_lapsed(script) <= longest + 1
    assert script.asked == lapse.FAILURES


async def test_an_outage_is_waited_out_for_an_hour_and_not_longer(autojump_clock: object) -> None:
    assert await seconds_until_lapsed(Scripted(AWAY)) == pytest.approx(lapse.OUTAGE, abs=lapse.REVIEW)
    script = Scripted(*([AWAY] * 30 + [ALICE] + [AWAY] * 30), GONE)
    assert await seconds_until_lapsed(script) == pytest.approx(62 * lapse.REVIEW, abs=1)


async def test_a_token_expires_while_its_verifier_is_away(autojump_clock: object) -> None:
    caller = Caller(ALICE.owner, expires_at=NOW + 90)
    assert await seconds_until_lapsed(Scripted(AWAY), caller) == pytest.approx(90, abs=1)


@pytest.mark.parametrize("cause", [Cause.UNAUTHORIZED, Cause.INSUFFICIENT_SCOPE, Cause.NOT_FOUND, Cause.INTERNAL])
async def test_any_refusal_of_the_credential_ends_the_stream(cause: Cause, autojump_clock: object) -> None:
    assert await seconds_until_lapsed(Scripted(ALICE, Fault(cause, "no"))) == pytest.approx(2 * lapse.REVIEW, abs=1)


async def test_a_credential_that_means_somebody_else_ends_the_stream(autojump_clock: object) -> None:
    script = Scripted(ALICE, Caller(Owner("i", "mallory", "c")))
    assert await seconds_until_lapsed(script) == pytest.approx(2 * lapse.REVIEW, abs=1)


async def test_a_review_can_be_cancelled_while_its_verifier_hangs(autojump_clock: object) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(seconds_until_lapsed, Scripted(None))
        await anyio.sleep(lapse.REVIEW + 1)
        tasks.cancel_scope.cancel()
    assert anyio.current_time() < 2 * lapse.REVIEW


class Failing:
    """A verifier that fails as it is told."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.revoked = False

    async def verify_token(self, token: str) -> AccessToken | None:
        if (error := self.error) is not None:
            self.error = None
            raise error
        return None if self.revoked else AccessToken(token=token, client_id="c", scopes=[], subject="s")


@pytest.mark.parametrize("kind", ["listen", "get"])
@pytest.mark.parametrize("error", [RuntimeError("reset"), SystemExit(3)], ids=["error", "exit"])
async def test_a_stream_ends_after_a_revocation_though_one_review_failed(
    kind: str, error: BaseException, autojump_clock: object
) -> None:
    verifier = Failing()
    async with running(token_verifier=verifier) as setup:
        token = bearer("t")
        if kind == "listen":
            message = mcp.modern(mcp.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
            stream = setup.client.stream("POST", "/mcp", mcp.modern_headers(message, token), mcp.body(message))
        else:
            answer = await setup.client.request(
                "POST", "/mcp", mcp.headers(None, None, token), mcp.body(mcp.initialize())
            )
            named = mcp.headers(answer.header("mcp-session-id"), mcp.LEGACY, token, accept="text/event-stream")
            stream = setup.client.stream("GET", "/mcp", named)
        async with stream as exchange:
            assert (await exchange.started())[0] == 200
            verifier.error = error
            await anyio.sleep(lapse.REVIEW + 1)
            assert exchange.running
            verifier.revoked = True
            with anyio.fail_after(lapse.REVIEW + 1):
                await exchange.finished()


@pytest.mark.parametrize("error", [RuntimeError("bug"), SystemExit(3), asyncio.CancelledError()])
async def test_a_verifier_that_raises_fails_its_own_request_only(error: BaseException) -> None:
    verifier = Failing()
    async with running(token_verifier=verifier) as setup:
        verifier.error = error
        ping = ("POST", "/mcp", mcp.headers(None, None, bearer("t")), mcp.body(mcp.request("ping")))
        failed = await setup.client.request(*ping)
        assert (failed.status, failed.json()["error"]["code"]) == (500, -32603)
        assert (await setup.client.request(*ping)).status == 200


async def test_what_the_host_raises_passes_through_the_verifier() -> None:
    for error in (KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt(), SystemExit()])):
        with pytest.raises(type(error)):
            await ContainedAuthenticator(Scripted(error)).authenticate({})
    with pytest.raises(AuthenticatorFailedError):
        await ContainedAuthenticator(Scripted(BaseExceptionGroup("", [SystemExit()]))).authenticate({})


async def test_an_authenticator_of_the_programs_is_contained_too() -> None:
    app = HybridApp(MCPServer("plain"), Settings(), authenticator=Scripted(SystemExit(1), ALICE))
    async with AsgiClient(app) as client:
        ping = ("POST", "/mcp", mcp.headers(), mcp.body(mcp.request("ping")))
        assert [(await client.request(*ping)).status for _ in range(2)] == [500, 200]

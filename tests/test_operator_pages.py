"""The operator's pages: probes, the gates before the others, and the sessions that are live, on all workers."""

from __future__ import annotations

from itertools import count
from typing import Any

import anyio
import httpx2
import pytest

from harness import mcp
from harness.asgi import Answer, App, AsgiClient, Message, Receive, Send
from harness.example import Example
from harness.hybrid import Fleet, Setup, fleet, running
from harness.process import free_port, program, serve
from harness.redis import RedisServer, redis_server
from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.backplane import BackplaneUnavailableError, MemoryBackplane
from mcp_hybrid.backplane.redis import RedisBackplane
from mcp_hybrid.counts import Count
from mcp_hybrid.service import roll
from mcp_hybrid.sessions import registry as registries

ADMIN = "an-admin-key-of-some-length"
BEARER = ("authorization", f"Bearer {ADMIN}")
WITH_KEY: dict[str, Any] = {"operator": {"admin_key": ADMIN}}
FOREIGN = ("host", "evil.example")
OWN_PORT = 9100
SLOW = 60.0
"""Seconds for what comes soon: a server may still be starting its workers, and the machine do much else."""


class Away(MemoryBackplane):
    """A shared backplane that can be taken away."""

    shared = True
    here = True

    @property
    def available(self) -> bool:
        return self.here

    async def revoke(self, session: str, until: float) -> None:
        if not self.here:
            raise BackplaneUnavailableError
        await super().revoke(session, until)


def at_port(app: App, port: int) -> App:
    """Have the app's connections come in by another port."""

    async def served(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["server"] = ("127.0.0.1", port)
        await app(scope, receive, send)

    return served


async def get(setup: Setup, path: str, *headers: tuple[str, str]) -> Answer:
    return await setup.client.request("GET", path, headers)


async def delete(setup: Setup, name: str) -> Answer:
    return await setup.client.request("DELETE", f"/admin/sessions/{name}", [BEARER])


async def listed(setup: Setup) -> dict[str, Any]:
    answer = await get(setup, "/admin/sessions", BEARER)
    assert answer.status == 200
    found: dict[str, Any] = answer.json()
    return found


ODD_PATHS = [
    "/admin/sessions/../../mcp",
    "/admin/sessions/..%2f..%2fmcp",
    "/admin/sessions/%2e%2e/%2E%2E/mcp",
    "/admin/sessions/..%5C..%5Cmcp",
    "/admin/sessions/./x",
    "/mcp/../metrics",
    "/mcp/..\\metrics",
]


@pytest.mark.parametrize("path", ODD_PATHS)
async def test_a_path_that_a_proxy_may_read_otherwise_is_none_of_ours(path: str) -> None:
    async with running(**WITH_KEY) as setup:
        for headers in ([], [BEARER]):
            answer = await get(setup, path, *headers)
            assert (answer.status, answer.header("content-type")) == (404, "application/json")


# Probes


async def test_a_process_that_answers_is_alive_whatever_else_it_can_do() -> None:
    app = HybridApp(Example().server)
    async with AsgiClient(app, lifespan=False) as client:
        alive = await client.request("GET", "/healthz")
        ready = await client.request("GET", "/readyz")
    assert (alive.status, alive.json()) == (200, {"status": "ok"})
    assert (ready.status, ready.json()) == (503, {"ready": False, "reasons": ["not_running"]})


async def test_a_server_is_ready_until_it_drains() -> None:
    async with running() as setup:
        assert (await get(setup, "/readyz")).json() == {"ready": True, "reasons": []}
        setup.app.draining = True
        answer = await get(setup, "/readyz")
        assert (answer.status, answer.json()["reasons"]) == (503, ["draining"])
        assert (await get(setup, "/healthz")).status == 200


async def test_a_server_whose_backplane_is_away_is_not_ready_unless_that_is_left_out() -> None:
    backplane = Away()
    backplane.here = False
    async with AsgiClient(HybridApp(Example().server, backplane=backplane)) as client:
        refused = await client.request("GET", "/readyz")
        assert (refused.status, refused.json()["reasons"]) == (503, ["backplane"])
        assert (await client.request("GET", "/readyz?exclude=backplane")).status == 200
        assert (await client.request("GET", "/readyz?exclude=draining")).status == 503


@pytest.mark.redis
async def test_readiness_follows_redis_without_a_single_request() -> None:
    with redis_server() as redis:
        async with fleet(redis.url, 1) as workers:
            (setup,) = workers.workers
            redis.kill()
            await until_ready(setup, ready=False)
            redis.start()
            await until_ready(setup, ready=True)


async def until_ready(setup: Setup, *, ready: bool) -> None:
    with anyio.fail_after(SLOW):
        while (await get(setup, "/readyz")).json()["ready"] is not ready:  # noqa: ASYNC110 - nobody announces it
            await anyio.sleep(0.05)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_come_with_any_host_and_no_credential(path: str) -> None:
    async with running(users=True) as setup:
        assert (await get(setup, path, FOREIGN, ("x-user", "nobody"))).status == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_pages_are_read_and_never_kept(path: str) -> None:
    async with running() as setup:
        whole = await get(setup, path)
        assert whole.header("cache-control") == "no-store"
        head = await setup.client.request("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert head.header("content-type") == whole.header("content-type")
        refused = await setup.client.request("POST", path, mcp.headers(), mcp.body(mcp.request("ping")))
        assert (refused.status, refused.header("allow")) == (405, "GET, HEAD")


async def test_where_the_application_is_mounted_the_pages_are_below_it() -> None:
    app = HybridApp(Example().server)

    async def mounted(scope: Message, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": "/tools"}, receive, send)

    async with AsgiClient(mounted) as client:
        assert (await client.request("GET", "/tools/healthz")).status == 200


async def test_the_endpoint_wins_over_a_page_of_the_same_path() -> None:
    async with running(path="/metrics") as setup:
        answer = await setup.client.request("POST", "/metrics", mcp.headers(), mcp.body(mcp.request("ping")))
        assert answer.json()["result"] == {}


# Who may read the others


async def test_metrics_pass_the_gates_of_the_endpoint() -> None:
    async with running(users=True) as setup:
        assert (await get(setup, "/metrics")).status == 200
        assert (await get(setup, "/metrics", FOREIGN)).status == 421
        assert (await get(setup, "/metrics", ("origin", "https://evil.example"))).status == 403
        assert (await get(setup, "/metrics", ("x-user", "nobody"))).status == 401


async def test_metrics_can_be_turned_off() -> None:
    async with running(operator={"metrics": False}) as setup:
        assert (await get(setup, "/metrics")).status == 404
        assert (await get(setup, "/healthz")).status == 200


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_without_a_key_in_the_settings_there_is_no_admin_page(method: str) -> None:
    async with running() as setup:
        for path in ("/admin/sessions", f"/admin/sessions/{'0' * 32}"):
            assert (await setup.client.request(method, path, [BEARER])).status == 404


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="no key"),
        pytest.param([("authorization", f"Bearer {ADMIN}x")], id="a longer one"),
        pytest.param([("authorization", f"Bearer {ADMIN[:-1]}")], id="a shorter one"),
        pytest.param([("authorization", "Bearer")], id="an empty one"),
        pytest.param([("authorization", f"Basic {ADMIN}")], id="another scheme"),
        pytest.param([BEARER, BEARER], id="twice"),
        pytest.param([("authorization", "Bearer \xe9")], id="not ASCII"),
    ],
)
async def test_the_admin_page_opens_to_its_key_only(headers: list[tuple[str, str]]) -> None:
    async with running(**WITH_KEY) as setup:
        await mcp.Conversation.open(setup.client)
        (live,) = setup.registry.sessions()
        for method, path in (("GET", ""), ("DELETE", f"/{live.hash}")):
            answer = await setup.client.request(method, f"/admin/sessions{path}", headers)
            assert answer.status == 401
            assert answer.header("www-authenticate") == 'Bearer realm="operator"'
        assert len(setup.registry) == 1


async def test_the_admin_page_is_behind_the_host_gate_and_needs_no_credential_of_the_endpoint() -> None:
    async with running(users=True, **WITH_KEY) as setup:
        assert (await get(setup, "/admin/sessions", BEARER, FOREIGN)).status == 421
        assert (await get(setup, "/admin/sessions", BEARER, ("x-user", "nobody"))).status == 200


async def test_on_a_port_of_their_own_pages_are_served_there_and_nowhere_else() -> None:
    app = HybridApp(Example().server, Settings(operator={"port": OWN_PORT, "admin_key": ADMIN}))
    pages = ["/healthz", "/readyz", "/metrics", "/admin/sessions"]
    async with AsgiClient(app) as client:
        assert [(await client.request("GET", path, [BEARER])).status for path in pages] == [404] * 4
        ping = ("POST", "/mcp", mcp.headers(), mcp.body(mcp.request("ping")))
        assert (await client.request(*ping)).status == 200
        async with AsgiClient(at_port(app, OWN_PORT), lifespan=False) as own:
            assert [(await own.request("GET", path, [BEARER])).status for path in pages] == [200] * 4
            assert (await own.request("GET", "/admin/sessions")).status == 401
            assert (await own.request(*ping)).status == 404


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (("host", "evil.example"), 421), (("host", "evil.example:9100"), 421), (("host", ""), 421),
        (("host", "127.0.0.1.evil.example"), 421), (("host", "::1"), 421), (("host", "[10.1.2.3]"), 421),
        (("host", "0x7f.1"), 421), (("host", "10.1.2.3:9100"), 200), (("host", "[2001:db8::1]:9100"), 200),
        (("host", "localhost:9100"), 200), (("host", "metrics.example.org"), 200),
        (("origin", "https://evil.example"), 403), (("origin", "null"), 403), (("origin", "http://10.1.2.3:9100"), 403),
    ],
)  # fmt: skip
async def test_a_rebound_name_reads_nothing_on_the_own_port(header: tuple[str, str], status: int) -> None:
    security = {"allowed_hosts": ["localhost", "127.0.0.1", "metrics.example.org"]}
    app = HybridApp(Example().server, Settings(operator={"port": OWN_PORT, "admin_key": ADMIN}, security=security))
    async with AsgiClient(app), AsgiClient(at_port(app, OWN_PORT), lifespan=False) as own:
        for path in ("/metrics", "/admin/sessions"):
            assert (await own.request("GET", path, [BEARER, header])).status == status
        for path in ("/healthz", "/readyz"):
            assert (await own.request("GET", path, [header])).status == 200


@pytest.mark.process
@pytest.mark.parametrize("options", [[], ["--workers", "2"]], ids=["one process", "two workers"])
def test_a_real_server_listens_on_both_ports(options: list[str]) -> None:
    own = free_port()
    with serve(program("launched"), *options, env={"MCP_HYBRID_OPERATOR__PORT": str(own)}) as server:
        assert httpx2.get(f"http://127.0.0.1:{own}/readyz", timeout=SLOW).json()["ready"]
        assert "mcp_hybrid_workers" in httpx2.get(f"http://127.0.0.1:{own}/metrics", timeout=SLOW).text
        assert httpx2.get(f"http://127.0.0.1:{server.port}/readyz", timeout=SLOW).status_code == 404
        ping: Any = {"headers": mcp.headers(), "json": mcp.request("ping")}
        assert httpx2.post(server.url, **ping, timeout=SLOW).status_code == 200
        assert httpx2.post(f"http://127.0.0.1:{own}/mcp", **ping, timeout=SLOW).status_code == 404


# The sessions


async def test_a_session_is_listed_with_whose_it_is_and_what_it_does() -> None:
    async with running(users=True, **WITH_KEY) as setup:
        talk = await mcp.Conversation.open(setup.client)
        async with talk.get() as stream, talk.stream(mcp.tool("wait")):
            await stream.event()
            await setup.example.until_started("wait")
            answer = await get(setup, "/admin/sessions", BEARER)
        (live,) = setup.registry.sessions()
        (entry,) = answer.json()["sessions"]
        assert entry.pop("idle") >= 0
        assert entry == {
            "session": live.hash, "owner": "test/alice/client", "client": "harness", "client_version": "1",
            "protocol": mcp.LEGACY, "issued": int(setup.clock.now), "calls": 1, "questions": 0, "stream": True,
            "pinned": False, "workers": [live.worker],
        }  # fmt: skip
        assert talk.session.encode() not in answer.body
        assert {**answer.json(), "sessions": []} == {"complete": True, "workers": 1, "more": 0, "sessions": []}


@pytest.mark.parametrize("length", [8, 12, 32])
async def test_a_session_is_ended_by_its_hash_or_the_start_of_it(length: int) -> None:
    async with running(**WITH_KEY) as setup:
        talk = await mcp.Conversation.open(setup.client)
        other = await mcp.Conversation.open(setup.client)
        digest = setup.registry.sessions()[0].hash
        async with talk.stream(mcp.tool("wait")) as call:
            await setup.example.until_started("wait")
            answer = await delete(setup, digest[:length])
            assert (answer.status, answer.json()) == (200, {"ended": digest, "everywhere": True})
            assert (await talk.answers(call))["error"]["code"] == -32000
        assert (await talk.post(mcp.request("ping"))).status == 404
        assert (await other.post(mcp.request("ping"))).status == 200
        assert setup.registry.counts[Count.ENDED_BY_OPERATOR] == 1


async def test_a_session_that_hibernates_is_ended_by_its_whole_hash(autojump_clock: object) -> None:
    async with running(sessions={"idle_timeout": 60}, **WITH_KEY) as setup:
        talk = await mcp.Conversation.open(setup.client)
        digest = setup.registry.sessions()[0].hash
        await anyio.sleep(100)
        assert (await delete(setup, digest[:12])).status == 404
        assert (await delete(setup, digest)).status == 200
        assert (await talk.post(mcp.request("ping"))).status == 404


async def test_what_was_ended_without_its_record_is_remembered_for_as_long_as_any_id_is_good() -> None:
    async with running(sessions={"max_age": 1000, "idle_timeout": 60}, **WITH_KEY) as setup:
        talk = await mcp.Conversation.open(setup.client)
        (live,) = setup.registry.sessions()
        setup.registry._hibernate(live)
        await delete(setup, live.hash)
        setup.clock.now += 999
        await setup.app._backplane.prune()
        assert (await talk.post(mcp.request("ping"))).status == 404


@pytest.fixture
def _alike(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count()
    known: dict[str, str] = {}

    def hash_of(session_id: str) -> str:
        return known.setdefault(session_id, f"{'ab' * 8}{next(numbers):016x}")

    monkeypatch.setattr(registries, "hash_of", hash_of)


@pytest.mark.usefixtures("_alike")
async def test_a_start_that_two_hashes_share_ends_neither() -> None:
    async with running(**WITH_KEY) as setup:
        for _ in range(2):
            await mcp.Conversation.open(setup.client)
        answer = await delete(setup, "abababab")
        assert (answer.status, "2 sessions" in answer.json()["error"]["message"]) == (409, True)
        assert len(setup.registry) == 2


@pytest.mark.parametrize("name", ["", "abc", "../x", "g" * 12, "0" * 33, "A" * 12, "0" * 12])
async def test_what_names_no_session_is_not_found(name: str) -> None:
    async with running(**WITH_KEY) as setup:
        assert (await delete(setup, name)).status == 404


async def test_several_workers_that_share_nothing_say_that_they_speak_for_one() -> None:
    settings = Settings.model_validate({"server": {"workers": 2}, **WITH_KEY})
    example = Example()
    app = HybridApp(example.server, settings)
    async with AsgiClient(app) as client:
        setup = Setup(client, app, example)
        assert (await listed(setup))["complete"] is False
        assert (await delete(setup, "0" * 32)).json()["everywhere"] is False


async def test_with_the_backplane_away_nothing_is_ended_and_it_says_so() -> None:
    backplane, example = Away(), Example()
    app = HybridApp(example.server, Settings.model_validate(WITH_KEY), backplane=backplane)
    async with AsgiClient(app) as client:
        setup = Setup(client, app, example)
        await mcp.Conversation.open(client)
        (live,) = setup.registry.sessions()
        backplane.here = False
        answer = await delete(setup, live.hash)
        assert (answer.status, answer.header("retry-after")) == (503, "1")
        assert len(setup.registry) == 1


# On several workers


@pytest.fixture
def _patient_roll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers wait for each other's answers however long they take."""
    monkeypatch.setattr(roll, "PATIENCE", SLOW)


@pytest.mark.usefixtures("_patient_roll")
async def test_any_worker_lists_the_sessions_of_all_and_one_that_is_on_two_is_one(shared_redis: RedisServer) -> None:
    async with fleet(shared_redis.url, 3, **WITH_KEY) as workers:
        talks = [await mcp.Conversation.open(each.client) for each in workers.workers]
        async with workers.at(talks[0], 1).stream(mcp.tool("wait")):
            await workers.workers[1].example.until_started("wait")
            answers = [await listed(each) for each in workers.workers]
        for answer in answers:
            assert (answer["complete"], answer["workers"], len(answer["sessions"])) == (True, 3, 3)
        (both,) = [each for each in answers[2]["sessions"] if len(each["workers"]) == 2]
        assert (both["calls"], both["workers"]) == (1, sorted(names(workers)[:2]))


def names(workers: Fleet) -> list[str]:
    return [each.app._backplane.worker for each in workers.workers]


@pytest.mark.usefixtures("_patient_roll")
@pytest.mark.parametrize("how", ["start", "whole"])
async def test_a_session_is_ended_wherever_it_is_live(how: str, shared_redis: RedisServer) -> None:
    async with fleet(shared_redis.url, 3, **WITH_KEY) as workers:
        talk = await mcp.Conversation.open(workers.workers[1].client)
        digest = workers.workers[1].registry.sessions()[0].hash
        async with workers.at(talk, 1).stream(mcp.tool("wait")) as call:
            await workers.workers[1].example.until_started("wait")
            answer = await delete(workers.workers[0], digest[:12] if how == "start" else digest)
            assert answer.json() == {"ended": digest, "everywhere": True}
            assert (await talk.answers(call))["error"]["code"] == -32000
        for worker in range(3):
            assert (await workers.at(talk, worker).post(mcp.request("ping"))).status == 404


async def test_a_worker_that_does_not_answer_is_not_waited_for_for_ever(shared_redis: RedisServer) -> None:
    async with fleet(shared_redis.url, 2, **WITH_KEY) as workers:
        backplane = workers.workers[0].app._backplane
        assert isinstance(backplane, RedisBackplane)
        await backplane._do(b"ZADD", backplane._each("workers")[0], backplane._clock(), b"stuck")
        await backplane._do(b"SET", backplane._key("worker", "stuck"), b"1", b"EX", 60)
        with anyio.fail_after(SLOW):
            answer = await listed(workers.workers[0])
        assert (answer["complete"], answer["workers"]) == (False, 2)

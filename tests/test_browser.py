"""A real Chromium: what a page may do that the operator has let in, and what no other page can."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Mapping

import pytest

from harness.browser import EVIL, PATIENCE, chromium, site
from harness.process import POLL, ServerProcess, program, serve
from harness.tools import need
from mcp_hybrid.settings import variable

pytestmark = pytest.mark.outside

GATED = program("gated")
HOLDS_A_SESSION = {
    "version": "2025-11-25",
    "opened": True,
    "initialized": 202,
    "route": "session",
    "type": "text/event-stream",
    "values": [1, 2, 3],
    "result": "3 steps",
    "ended": 204,
    "after": 404,
    "refusal": -32001,
}


def environment(**settings: str) -> dict[str, str]:
    """Give settings as environment variables; `cors__allowed_origins` is `cors.allowed_origins`."""
    return {variable(key.replace("__", ".")): value for key, value in settings.items()}


def lines(server: ServerProcess, count: int = 0) -> list[dict[str, object]]:
    """Give the log's lines about requests, once there are so many."""
    until = time.monotonic() + PATIENCE
    while True:
        found = [json.loads(line) for line in server.log.splitlines() if '"event":"request"' in line]
        if len(found) >= count:
            return found
        assert time.monotonic() < until, server.log
        time.sleep(POLL)


# A page that is let in


def test_a_page_of_an_allowed_origin_holds_a_session() -> None:
    with site("session") as page, serve(GATED, env=environment(cors__allowed_origins=page.origin)) as server:
        with chromium(page.url("session", endpoint=server.url, name="page")):
            assert page.report() == HOLDS_A_SESSION
        asked = [line for line in lines(server) if line["http"] == "OPTIONS"]
        assert {line["status"] for line in asked} == {204}, "the headers of MCP need a preflight"


def test_a_page_of_the_same_name_but_another_origin_does_not() -> None:
    with site("session") as page, serve(GATED, env=environment(cors__allowed_origins=page.origin)) as server:
        with chromium(page.url("session", host=EVIL, endpoint=server.url, name="page")):
            assert page.report() == {"values": [], "error": "TypeError: Failed to fetch"}
        assert [(line["http"], line["status"], line["refused"]) for line in lines(server)] == [
            ("OPTIONS", 403, "origin_not_allowed")
        ]


# Pages that are not


WAYS_OF_A_STRANGER = {
    "json": "failed",
    "2026-07-28": "failed",
    "session": "failed",
    "text": "opaque 0",
    "get": "opaque 0",
    "xhr": "error",
    "events": "error",
    "socket": "error",
    "image": "error",
    "form": "unreadable",
    "sandboxed": "failed",
    "beacon": True,  # it was sent; no page is told more
}
PREFLIGHTS = ["json", "2026-07-28", "session", "xhr", "sandboxed"]


@pytest.mark.parametrize(
    ("host", "seen"),
    [
        pytest.param(
            EVIL,
            {
                ("OPTIONS", 403): len(PREFLIGHTS),
                ("POST", 403): 3,  # the text, the form, the beacon
                ("GET", 403): 1,  # the event source
                ("GET", 405): 2,  # without a session, and without an Origin
            },
            id="another site",
        ),
        pytest.param(
            "127.0.0.1",
            {
                ("OPTIONS", 204): len(PREFLIGHTS) - 1,  # answered, but nothing is granted
                ("OPTIONS", 403): 1,  # the sandboxed frame
                ("POST", 415): 3,
                ("GET", 405): 3,
            },
            id="another program on this machine, which CORS does not name",
        ),
    ],
)
def test_nothing_that_another_page_can_send_is_served(host: str, seen: Mapping[tuple[str, int], int]) -> None:
    with site("attack") as page, serve(GATED) as server:
        with chromium(page.url("attack", host=host, endpoint=server.url)):
            assert page.report() == WAYS_OF_A_STRANGER
            found = lines(server, sum(seen.values()))
        assert Counter((line["http"], line["status"]) for line in found) == seen
        assert [line for line in found if "route" in line] == []


# DNS rebinding


@pytest.mark.parametrize(
    ("settings", "statuses"),
    [
        pytest.param({}, {"read": 421, "call": 421}, id="as it is by default"),
        pytest.param({"security__allowed_hosts": "*"}, {"read": 405, "call": 403}, id="every host let in"),
        pytest.param(
            {"security__allowed_hosts": "*", "security__allowed_origins": "*"},
            {"read": 405, "call": 200},
            id="every origin too, which shows the attack",
        ),
    ],
)
def test_a_page_whose_name_comes_to_mean_this_machine_gets_nowhere(
    settings: dict[str, str], statuses: dict[str, int]
) -> None:
    with site() as collector, serve(GATED, env=environment(**settings)) as server:
        server.kill()  # it is to come up later, on the same port
        with site("rebinding", port=server.port) as attacker:
            report = f"{collector.origin}/report"
            with chromium(attacker.url("rebinding", host=EVIL, report=report)):
                assert collector.report() == "ready"
                attacker.stop()
                server.start(server.port)
                found = collector.report()
    assert {what: attempt["status"] for what, attempt in found.items()} == statuses
    served = [what for what, attempt in found.items() if '"result"' in attempt["body"]]
    assert served == [what for what, status in statuses.items() if status == 200]


# What the browser does of its own accord


def test_chromium_asks_its_user_before_a_page_from_the_internet_reaches_this_machine() -> None:
    version = subprocess.run([need("chromium"), "--version"], capture_output=True, text=True, check=True).stdout
    if (found := re.search(r"Chromium (\d+)", version)) and int(found[1]) < 142:
        pytest.skip("this Chromium does not know local network access yet")
    with site("session") as page, serve(GATED, env=environment(cors__allowed_origins=page.origin)) as server:
        public = f"--ip-address-space-overrides=127.0.0.1:{page.port}=public"
        with chromium(page.url("session", endpoint=server.url, name="page"), public):
            assert page.report() == {"values": [], "error": "TypeError: Failed to fetch"}
        assert lines(server) == []

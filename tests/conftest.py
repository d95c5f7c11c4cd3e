"""Fixtures that several files share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from harness import bounded, kinds, logged, logs, plain_hypercorn, properties, skipping
from harness.redis import RedisServer, redis_server
from mcp_hybrid.backplane.redis import ends


def pytest_configure(config: pytest.Config) -> None:
    """Load what all tests run under."""
    properties.load_profile()
    config.pluginmanager.register(skipping, "skipping in CI")
    config.pluginmanager.register(kinds, "kinds of tests")
    config.pluginmanager.register(plain_hypercorn, "plain Hypercorn")
    config.pluginmanager.register(logs, "logs of servers")
    config.pluginmanager.register(bounded, "bounded tests")
    config.pluginmanager.register(logged, "loggers")


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis for all tests that do it no harm; each uses a prefix of its own."""
    with redis_server() as server:
        yield server


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers trust what they have heard for ever, and wait as long for others: however slow a test runs."""
    monkeypatch.setattr(ends, "FRESH", math.inf)

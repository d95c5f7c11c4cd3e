"""Reads a metrics page."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from harness.asgi import AsgiClient

PREFIX = "mcp_hybrid_"


class Figures:
    """What a page says: each figure by its name, without the prefix, and its labels."""

    def __init__(self, page: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(page)}
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in self.families.values():
            for sample in family.samples:
                key = (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items()))
                assert key not in self._values, f"{key} comes twice"
                self._values[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """Return a figure; one that was never moved, and is not shown until it is, is 0."""
        return self._values.get((name, frozenset(labels.items())), 0.0)

    def of(self, name: str) -> Mapping[tuple[str, ...], float]:
        """Return the figures of one name that are not 0, by their labels' values in the order of the labels' names."""
        return {
            tuple(value for _, value in sorted(labels)): figure
            for (known, labels), figure in self._values.items()
            if known == name and figure
        }


async def read_figures(client: AsgiClient) -> Figures:
    """Ask an application for its page."""
    answer = await client.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    return Figures(answer.body.decode())

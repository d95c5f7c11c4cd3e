"""How `mcp-hybrid call` reads its arguments, and what it says about the route."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_hybrid.client import Protocol, call
from mcp_hybrid.client.arguments import UsageError, nearest, split, typed
from mcp_hybrid.client.route import progress_note
from mcp_hybrid.client.screen import printable


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("1", {"type": "integer"}, 1),
        ("1", {"type": "string"}, "1"),
        ("true", {"type": "string"}, "true"),
        ('"quoted"', {"type": "string"}, '"quoted"'),
        ("plain", {"type": "string"}, "plain"),
        ("plain", {"type": "integer"}, "plain"),
        ("1.5", {"type": "number"}, 1.5),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("5", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "5"),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("5", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 5),
        ("5", {"type": ["string", "null"]}, "5"),
        ("5", {"enum": ["5", "6"]}, "5"),
        ("5", {}, 5),
        ("five", {}, "five"),
        ("NaN", {"type": "number"}, "NaN"),
        ("", {"type": "string"}, ""),
        ("9" * 5000, {}, "9" * 5000),
        ("[" * 100_000, {}, "[" * 100_000),
    ],
)
def test_a_value_is_json_unless_the_schema_says_text(text: str, schema: dict[str, Any], value: object) -> None:
    assert typed({"key": text}, {"type": "object", "properties": {"key": schema}}) == {"key": value}


def test_a_value_the_schema_does_not_know_is_json_if_it_parses() -> None:
    assert typed({"a": "1", "b": "x"}, {}) == {"a": 1, "b": "x"}


def test_a_pair_is_split_at_its_first_equals_sign() -> None:
    assert split(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("pairs", [["a"], ["=1"], [""], ["a=1", "a=2"]])
def test_a_pair_that_is_none_or_comes_twice_is_refused(pairs: list[str]) -> None:
    with pytest.raises(UsageError):
        split(pairs)


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    assert nearest("ad", ["add", "countdown"]) == "did you mean 'add'?"
    assert nearest("zzz", ["b", "a"]) == "it has a, b"
    assert nearest("zzz", []) == "it has none"


@pytest.mark.parametrize(
    ("route", "seen", "note"),
    [
        (
            "stateless; progress=withheld",
            False,
            "no progress: this call was served without a session (route: stateless; progress=withheld)",
        ),
        (
            "stateless; session=unknown; progress=withheld",
            False,
            (
                "no progress: the server did not know this call's session, so it was served without one "
                "(route: stateless; session=unknown; progress=withheld)"
            ),
        ),
        (
            "session; progress=withheld",
            False,
            "no progress: this server sends none to such calls (route: session; progress=withheld)",
        ),
        ("stateless; progress=withheld", True, None),
        ("session", False, None),
        ("modern", False, None),
        (None, False, None),
    ],
)
def test_progress_that_was_withheld_is_said_plainly(route: str | None, seen: bool, note: str | None) -> None:
    assert progress_note(route, seen=seen) == note


def test_control_characters_from_a_server_do_not_reach_the_screen() -> None:
    assert printable("a\x1b[2Jb\nc\r") == "a\ufffd[2Jb\nc\ufffd"


@pytest.mark.parametrize("url", ["127.0.0.1:8000/mcp", "ftp://127.0.0.1/mcp", "http://", "http://127.0.0.1:x/mcp", ""])
def test_a_url_that_cannot_be_an_endpoint_is_a_usage_error(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(url, "add", [], session=True, protocol=Protocol.LEGACY) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


def test_arguments_are_checked_before_anything_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("http://127.0.0.1:9/mcp", "add", ["a"], session=True, protocol=Protocol.LEGACY) == 2
    assert capsys.readouterr().err == "error: 'a' is not an argument: write key=value\n"

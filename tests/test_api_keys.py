"""API keys: how they are made, what the file may say, and what a key is worth."""

from __future__ import annotations

import threading
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import trio
from mcp.server.auth.provider import AccessToken
from structlog.testing import LogCapture
from typer.testing import CliRunner, Result

from mcp_hybrid.cli import app
from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.security import api_keys, watched
from mcp_hybrid.security.verifiers import ApiKeyVerifier

NOW = 1_800_000_000.0
HASH = "0" * 64


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["api-key", "new", *arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> LogCapture:
    """What the watcher of the file logs. Its own logger may have been cached by an earlier test, and is replaced."""
    capture = LogCapture()
    monkeypatch.setattr(watched, "log", structlog.wrap_logger(structlog.PrintLogger(), processors=[capture]))
    return capture


# Making them


def test_a_key_is_printed_once_with_the_entry_that_makes_it_good() -> None:
    result = run("--owner", "alice", "--scope", "tools", "--scope", "admin")
    key, _, entry = result.stdout.partition("\n\n")
    (listed,) = tomllib.loads(entry)["keys"]
    assert key.startswith("mh_")
    assert len(key) == 3 + 43
    assert (listed["owner"], listed["scopes"]) == ("alice", ["tools", "admin"])
    assert listed["sha256"] == api_keys.digest(key).hex()
    assert key not in entry


def test_each_key_is_another() -> None:
    assert len({api_keys.make("alice").key for _ in range(100)}) == 100
    assert len({api_keys.make("alice").id for _ in range(100)}) > 90


def test_keys_are_added_to_a_file_that_others_cannot_read(file: Path) -> None:
    first, second = run("--owner", "alice", "--file", str(file)), run("--owner", "bob", "--file", str(file))
    keys = api_keys.parse(file.read_text())
    assert [keys[api_keys.digest(each.stdout.strip())].owner for each in (first, second)] == ["alice", "bob"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert first.stdout.strip() not in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["keys.toml"]


def test_what_is_in_the_file_stays_as_it_is_comments_and_mode_and_link(file: Path) -> None:
    file.write_text("# by hand\n" + api_keys.make("alice").entry.rstrip())
    file.chmod(0o640)
    link = file.with_name("link.toml")
    link.symlink_to(file)
    assert run("--owner", "bob", "--file", str(link)).exit_code == 0
    assert link.is_symlink()
    assert file.read_text().startswith("# by hand\n")
    assert len(api_keys.parse(file.read_text())) == 2
    assert file.stat().st_mode & 0o777 == 0o640


def test_keys_that_are_added_at_the_same_time_are_all_there(file: Path) -> None:
    adding = [threading.Thread(target=api_keys.append, args=(file, api_keys.make("alice"))) for _ in range(20)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    assert len(api_keys.parse(file.read_text())) == 20


def test_a_key_is_good_for_as_long_as_was_said(file: Path) -> None:
    assert run("--owner", "alice", "--expires", "90d", "--file", str(file)).exit_code == 0
    (key,) = api_keys.parse(file.read_text()).values()
    assert key.expires is not None
    assert abs(key.expires - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--owner", "a\nb"], "'a\\nb' cannot be the owner"),
        (["--owner", 'a"b'], "cannot be the owner"),
        (["--owner", ""], "cannot be the owner"),
        (["--owner", "alice", "--scope", "two words"], "'two words' cannot be the scope"),
        (["--owner", "alice", "--name", "a b"], "'a b' cannot be the name"),
        (["--owner", "alice", "--expires", "soon"], "--expires: 'soon' is not"),
        (["--owner", "alice", "--expires", "1e30d"], "--expires: '1e30d' is not"),
        (["--owner", "alice", "--file", "no/such/folder/keys.toml"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("mcp-hybrid: ")
    assert words in line


def test_a_file_that_is_not_understood_is_left_alone(file: Path) -> None:
    file.write_text("[[keys]]\nid = 1")
    assert "is not understood: key 1: id" in run("--owner", "alice", "--file", str(file)).stderr
    assert file.read_text() == "[[keys]]\nid = 1"


def test_a_name_is_not_given_twice(file: Path) -> None:
    assert run("--owner", "alice", "--name", "ci", "--file", str(file)).exit_code == 0
    result = run("--owner", "alice", "--name", "ci", "--file", str(file))
    assert result.exit_code == 2
    assert "key 2 (ci) is there twice" in result.stderr
    assert len(api_keys.parse(file.read_text())) == 1


# What the file may say


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[keys", "end of an array"),
        ("[keys]", r"written as \[\[keys\]\]"),
        ("key = 1", r"\[\[keys\]\] only, not key"),
        (f'[[keys]]\nid = "a"\nowner = "a"\nsha256 = "{HASH}"\nscope = ["x"]', "key 1: scope: Extra"),
        ('[[keys]]\nid = "a"\nowner = "a"\nsha256 = "abc"', "key 1: sha256"),
        (f'[[keys]]\nid = "a"\nowner = ""\nsha256 = "{HASH}"', "key 1: owner"),
        (f'[[keys]]\nid = "a"\nowner = "a"\nsha256 = "{HASH}"\nscopes = "tools"', "key 1: scopes"),
        (f'[[keys]]\nid = "a"\nowner = "a"\nsha256 = "{HASH}"\nexpires = "soon"', "key 1: expires"),
        (f'[[keys]]\nid = "a"\nowner = "a"\nsha256 = "{HASH}"\n[[keys]]\nid = "b"\nowner = "b"\nsha256 = "{HASH}"',
         r"key 2 \(b\) is there twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_told_without_what_is_secret(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        api_keys.parse(text)
    assert HASH not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_an_empty_file_lists_no_key() -> None:
    assert api_keys.parse("") == {}


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2027-01-31T12:00:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC)),
        ("2027-01-31T12:00:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_time_without_a_zone_is_utc(written: str, moment: datetime) -> None:
    text = f'[[keys]]\nid = "a"\nowner = "a"\nsha256 = "{HASH}"\nexpires = {written}'
    (key,) = api_keys.parse(text).values()
    assert key.expires == moment


# What a key is worth


def worth(verifier: ApiKeyVerifier, key: str) -> AccessToken | None:
    return trio.run(verifier.verify_token, key)


def test_a_key_says_its_owner_and_scopes_and_nothing_else_is_a_key(file: Path) -> None:
    made = api_keys.make("alice", ["tools"], name="laptop")
    api_keys.append(file, made)
    verifier = ApiKeyVerifier(file, lambda: NOW)
    found = worth(verifier, made.key)
    assert found is not None
    assert (found.subject, found.scopes, found.expires_at) == ("alice", ["tools"], None)
    assert found.claims == {"iss": "mcp-hybrid", "key": "laptop"}
    for wrong in (
        "",
        "mh_",
        made.key[:-1],
        made.key + "x",
        made.key.removeprefix("mh_"),
        made.key.upper(),
        "mh_\udcff",
    ):
        assert worth(verifier, wrong) is None
    assert worth(verifier, api_keys.digest(made.key).hex()) is None


def test_a_key_is_good_until_it_expires(file: Path) -> None:
    made = api_keys.make("alice", expires=datetime.fromtimestamp(NOW, UTC))
    api_keys.append(file, made)
    before, after = ApiKeyVerifier(file, lambda: NOW - 1), ApiKeyVerifier(file, lambda: NOW)
    found = worth(before, made.key)
    assert found is not None
    assert found.expires_at == int(NOW)
    assert worth(after, made.key) is None


def test_a_change_of_the_file_counts_within_a_second(file: Path) -> None:
    made, other = api_keys.make("alice"), api_keys.make("bob")
    api_keys.append(file, made)
    now = 0.0
    verifier = ApiKeyVerifier(file, lambda: NOW)
    verifier._file._clock = lambda: now
    verifier._file._next_look = 1.0
    file.write_text(other.entry)
    assert worth(verifier, made.key) is not None  # not looked at again yet
    now = 1.0
    assert worth(verifier, made.key) is None
    assert worth(verifier, other.key) is not None


@pytest.mark.parametrize("fate", ["broken", "removed", "unreadable"])
def test_a_file_that_cannot_be_used_any_more_goes_on_meaning_what_it_did(
    file: Path, fate: str, monkeypatch: pytest.MonkeyPatch, logged: LogCapture
) -> None:
    monkeypatch.setattr("mcp_hybrid.security.watched.LOOK_EVERY", 0)
    made = api_keys.make("alice")
    api_keys.append(file, made)
    verifier = ApiKeyVerifier(file, lambda: NOW)
    verifier._file._next_look = 0
    if fate == "broken":
        file.write_text("[[keys]]\nid = 1")
    elif fate == "removed":
        file.unlink()
    else:
        file.write_bytes(b"\xff")
    for _ in range(3):
        assert worth(verifier, made.key) is not None
    errors = [entry for entry in logged.entries if entry["log_level"] == "error"]
    assert [entry["file"] for entry in errors] == ["the API key file"]  # told once, not at each request
    file.write_text("")
    assert worth(verifier, made.key) is None


@pytest.mark.parametrize(
    ("text", "words"), [(None, r"keys\.toml cannot be read"), ("x", r"keys\.toml is not understood")]
)
def test_a_file_that_cannot_be_used_at_start_is_a_configuration_error(file: Path, text: str | None, words: str) -> None:
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        ApiKeyVerifier(file, lambda: NOW)

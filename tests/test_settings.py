"""Where a setting may come from, which source wins, and what a wrong one is told."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.masking import masked
from mcp_hybrid.routing.modes import Mode, ProgressPolicy, UnknownSession
from mcp_hybrid.settings import (
    FIELDS,
    Accepts,
    LogFormat,
    LogLevel,
    Settings,
    load,
    to_display,
)

KEY = base64.b64encode(bytes(range(224, 256))).decode()
OTHER_KEY = base64.b64encode(bytes(range(32))).decode()


def refusal(overrides: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **more: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(overrides, environ=environ or {}, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('mode = "stateful"\n[server]\nport = 1111\n[sessions]\nmax_age = "1d"\n', encoding="utf-8")
    return path


# Defaults


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings()
    assert (settings.mode, settings.target, settings.path) == (Mode.HYBRID, None, "/mcp")
    assert (settings.progress, settings.unknown_session) == (ProgressPolicy.SESSION, UnknownSession.REJECT)
    assert (settings.stream_after, settings.request_timeout) == (1, 300)
    sessions = settings.sessions
    assert (sessions.keys, sessions.max_age, sessions.idle_timeout, sessions.max_live) == ([], 604800, 300, 10000)
    assert settings.limits.body == 4194304
    assert settings.security.allowed_hosts == ["127.0.0.1", "localhost", "[::1]"]
    assert settings.security.allowed_origins == ["http://127.0.0.1", "http://localhost", "http://[::1]"]
    assert settings.cors.allowed_origins == []
    assert (settings.log.level, settings.log.format) == (LogLevel.INFO, LogFormat.AUTO)
    assert (settings.server.host, settings.server.port, settings.server.workers) == ("127.0.0.1", 8000, 1)


def test_every_setting_says_what_it_is_and_what_it_accepts() -> None:
    for key, field in FIELDS.items():
        assert field.description, key
        choice = isinstance(field.annotation, type) and field.annotation.__module__.startswith("mcp_hybrid")
        assert choice or any(isinstance(item, Accepts) for item in field.metadata), key


# Sources


def test_settings_built_in_python_read_neither_environment_nor_file(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("MCP_HYBRID_MODE", "stateless")
    monkeypatch.setenv("MCP_HYBRID_CONFIG", str(file))
    assert Settings().mode is Mode.HYBRID
    assert Settings(server={"port": 1}).mode is Mode.HYBRID


def test_without_an_environ_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_HYBRID_MODE", "stateless")
    assert load().settings.mode is Mode.STATELESS


def test_the_command_line_overrules_the_environment_which_overrules_the_file(file: Path) -> None:
    environ = {"MCP_HYBRID_SERVER__PORT": "2222", "MCP_HYBRID_MODE": "stateless"}
    loaded = load({"server.port": "3333"}, environ=environ, config=file)
    assert loaded.settings.server.port == 3333
    assert loaded.settings.mode is Mode.STATELESS
    assert loaded.settings.sessions.max_age == 86400
    assert loaded.settings.path == "/mcp"
    assert {key: loaded.origins[key] for key in ("server.port", "mode", "sessions.max_age", "path")} == {
        "server.port": "command line",
        "mode": "environment MCP_HYBRID_MODE",
        "sessions.max_age": f"file {file}",
        "path": "default",
    }


def test_origins_name_every_setting() -> None:
    assert set(load(environ={}).origins) == set(FIELDS)


def test_overrides_may_be_nested_and_say_they_are_arguments() -> None:
    loaded = load({"server": {"port": 1}, "mode": "stateless"}, environ={}, overrides_origin="argument")
    assert loaded.settings.server.port == 1
    assert (loaded.origins["server.port"], loaded.origins["mode"]) == ("argument", "argument")


def test_the_file_named_in_the_environment_is_read(file: Path) -> None:
    assert load(environ={"MCP_HYBRID_CONFIG": str(file)}).settings.mode is Mode.STATEFUL


def test_the_file_given_as_an_argument_is_read_instead_of_the_one_in_the_environment(file: Path) -> None:
    environ = {"MCP_HYBRID_CONFIG": "/nowhere.toml"}
    assert load(environ=environ, config=file).settings.mode is Mode.STATEFUL


def test_other_programs_variables_are_left_alone() -> None:
    assert load(environ={"HOME": "/", "MCP_SERVER": "x", "mcp_hybrid_mode": "x"}).settings == Settings()


# Values


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(300, 300), (0.5, 0.5), ("300", 300), ("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h", 3600), (" 1.5 H ", 5400)],
)
def test_durations_are_read_in_every_unit(written: object, seconds: float) -> None:
    assert load({"request_timeout": written}, environ={}).settings.request_timeout == seconds


@pytest.mark.parametrize("written", ["5 parsecs", "", "-1", -1, 0, True, "1h30m", float("inf"), float("nan"), "1e999"])
def test_what_is_no_duration_is_refused(written: object) -> None:
    assert 'expected a duration above 0, such as 300, "30s"' in refusal({"request_timeout": written})


def test_a_call_may_stream_from_the_start() -> None:
    assert load({"stream_after": "0"}, environ={}).settings.stream_after == 0


@pytest.mark.parametrize(
    ("written", "size"), [(1, 1), ("10", 10), ("4MiB", 4194304), ("512kib", 524288), ("1MB", 10**6)]
)
def test_sizes_are_read_in_every_unit(written: object, size: int) -> None:
    assert load({"limits.body": written}, environ={}).settings.limits.body == size


@pytest.mark.parametrize("written", ["4XB", "0", "0.5B", "", True])
def test_what_is_no_size_is_refused(written: object) -> None:
    assert "expected a number of bytes above 0" in refusal({"limits.body": written})


@pytest.mark.parametrize(
    ("written", "rate"),
    [("100/s", (100, 1)), (" 600 / M ", (600, 60)), ("5/h", (5, 3600)), ("1/d", (1, 86400)), ("", None), (" ", None)],
)
def test_rates_are_read_in_every_unit(written: str, rate: tuple[int, int] | None) -> None:
    assert load({"limits.rate_per_owner": written}, environ={}).settings.limits.bounds().rate_per_owner == rate


@pytest.mark.parametrize("written", ["100", "0/s", "1.5/s", "-1/s", "1/w", "/s", "1/10s", 100, True])
def test_what_is_no_rate_is_refused(written: object) -> None:
    assert 'expected a rate such as "100/s", "600/m"' in refusal({"limits.rate_per_owner": written})


@pytest.mark.parametrize("written", [0, 129, "deep", 1.5, True])
def test_what_is_no_depth_is_refused(written: object) -> None:
    assert "expected a whole number from 1 to 128" in refusal({"limits.depth": written})


def test_lists_are_separated_by_commas_in_the_environment() -> None:
    environ = {"MCP_HYBRID_SECURITY__ALLOWED_HOSTS": "a.example, b.example:80,", "MCP_HYBRID_CORS__ALLOWED_ORIGINS": ""}
    settings = load(environ=environ).settings
    assert settings.security.allowed_hosts == ["a.example", "b.example:80"]
    assert settings.cors.allowed_origins == []


def test_choices_are_read_in_any_case() -> None:
    assert load(environ={"MCP_HYBRID_LOG__LEVEL": "WARNING"}).settings.log.level is LogLevel.WARNING


def test_an_empty_target_in_the_environment_overrules_the_files(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('target = "server.py"', encoding="utf-8")
    assert load(environ={"MCP_HYBRID_TARGET": ""}, config=path).settings.target is None


# Authentication


@pytest.mark.parametrize("written", [True, "true", "1", "yes", "ON"])
def test_a_switch_is_read_as_people_write_it(written: object) -> None:
    settings = load({"auth.allow_anonymous": written}, environ={}).settings
    assert settings.auth.allow_anonymous is True
    assert to_display(settings)["auth.allow_anonymous"] == "true"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("auth.allow_anonymous", "perhaps", "expected true or false"),
        ("auth.algorithms", ["none"], "'none' is not accepted; expected some of RS256"),
        ("auth.algorithms", "RS256,HS256", "'HS256' is not accepted; expected some of RS256"),
        ("auth.algorithms", [], "expected some of RS256"),
        ("auth.jwks", "http://login.example.org/jwks.json", "http only on loopback"),
        ("auth.jwks", "ftp://login.example.org/jwks.json", "http only on loopback"),
        ("auth.jwks", "https://user:secret@login.example.org/", "http only on loopback"),
        ("auth.jwks", "http://127.0.0.1.example.org/", "http only on loopback"),
        ("auth.issuer", "http://login.example.org", "http only on"),
        ("auth.issuer", "login.example.org", "expected a URL"),
        ("auth.resource", 'https://example.org/"mcp', "expected a URL"),
        ("auth.resource", "https://example.org/mcp#here", "expected a URL"),
        ("auth.authorization_servers", ["https://a.example", "nowhere"], "'nowhere' is not accepted; expected URLs"),
        ("auth.required_scopes", "tools,offline_access", "'offline_access' is not accepted; expected scopes"),
        ("auth.required_scopes", ["two words"], "'two words' is not accepted; expected scopes"),
        ("auth.clock_skew", "-1", "expected a duration"),
    ],
)
def test_settings_of_authentication_that_are_not_safe_are_refused(key: str, value: object, words: str) -> None:
    assert words in refusal({key: value})


@pytest.mark.parametrize(
    "url", ["https://login.example.org", "http://127.0.0.1:9000/x", "http://[::1]:9000", "http://localhost/x"]
)
def test_urls_that_nobody_on_the_way_can_change_are_accepted_as_they_are_written(url: str) -> None:
    settings = load({"auth.issuer": url, "auth.jwks": url, "auth.resource": url}, environ={}).settings
    assert (settings.auth.issuer, settings.auth.jwks, settings.auth.resource) == (url, url, url)


def test_a_key_set_that_is_no_url_is_a_file_and_nothing_in_the_environment_is_none() -> None:
    assert load({"auth.jwks": "keys/jwks.json"}, environ={}).settings.auth.jwks == "keys/jwks.json"
    assert load(environ={"MCP_HYBRID_AUTH__API_KEYS": "", "MCP_HYBRID_AUTH__ISSUER": ""}).settings == Settings()


def test_a_password_in_an_address_that_is_refused_is_not_shown() -> None:
    message = refusal({"auth.jwks": "https://user:hunter2@login.example.org/"})
    assert "hunter2" not in message
    assert "user:***@login.example.org" in message


PASSWORDS = {
    "redis://:hunter2@host:6379/0": "redis://:***@host:6379/0",
    "redis://:p@ssw0rd@host": "redis://:***@host",
    "redis://user:p@ss:w@rd@host/1": "redis://user:***@host/1",
    "rediss://user:a:b@[::1]:6379": "rediss://user:***@[::1]:6379",
    "redis://user@host": "redis://user@host",
    "redis://host:6379/0?password=hunter2&db=1": "redis://host:6379/0?password=***&db=1",
    "https://login.example.org/@tenant/jwks": "https://login.example.org/@tenant/jwks",
    "https://login.example.org:8443/@tenant": "https://login.example.org:8443/@tenant",
    "file:///x@y": "file:///x@y",
    "a,https://u:p@a,https://v:q@b/c": "a,https://u:***@a,https://v:***@b/c",
    # malformed, and shown in an error
    "redis://:pa/ss@host": "redis://:***@host",
    "redis://:12/34@host": "redis://:***@host",
    "redis://user:12/34@host": "redis://user:***@host",
    "redis://:p?ss@host": "redis://:***@host",
    "redis://:p#s@s@host": "redis://:***@host",
    "https://u:p/ss@host": "https://u:***@host",
    "no URL": "no URL",
}


@pytest.mark.parametrize(("url", "shown"), PASSWORDS.items(), ids=PASSWORDS)
def test_a_password_in_a_url_is_masked_whatever_is_in_it(url: str, shown: str) -> None:
    assert masked(url) == shown


@given(password=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=5, max_size=20))
def test_no_password_of_a_redis_is_shown(password: str) -> None:
    secret = f"<{password}>"
    url = f"redis://user:{secret}@host:6379/0"
    assert secret not in masked(url)
    try:
        shown = to_display(load({"backplane": url}, environ={}).settings)["backplane"]
    except ConfigurationError as error:
        shown = str(error)
    assert secret not in shown
    assert password not in shown


@pytest.mark.parametrize(
    "url",
    ["redis://:pa/ss@host", "redis://host:port/0", "redis://host:70000", "redis://:6379", "redis:host", "redis://",
     "redis://host/zero", "redis://host/0/1", "redis://host/0#x", "redis://ho st", "http://host", "Memory!", ""],
)  # fmt: skip
def test_what_is_no_address_of_a_redis_is_refused(url: str) -> None:
    message = refusal({"backplane": url})
    assert "pa/ss" not in message
    assert "write / as %2F" in message


@pytest.mark.parametrize(
    "url", ["memory", "redis://h", "redis://h:1/15", "rediss://u:p@[::1]:1/", "redis://:p%2Fx@h?health_check=1"]
)
def test_an_address_of_a_redis_is_taken_as_it_is_written(url: str) -> None:
    assert load({"backplane": url}, environ={}).settings.backplane == url


# Paths, hosts and origins


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/mcp", "/mcp"),
        ("mcp", "/mcp"),
        ("/mcp/", "/mcp"),
        ("//mcp", "/mcp"),
        ("a//b///", "/a/b"),
        ("/", "/"),
        ("/a.b/..c", "/a.b/..c"),
        ("/\u00e9", "/\u00e9"),
    ],
)
def test_a_path_is_brought_into_the_form_of_requests(written: str, path: str) -> None:
    assert load({"path": written}, environ={}).settings.path == path


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "blanks"),
        (" ", "blanks"),
        ("/a b", "blanks"),
        (" /mcp", "blanks"),
        ("/mcp\n", "blanks"),
        ("/a\tb", "blanks"),
        ("/a\x00", "blanks"),
        ("/a\\b", "backslashes"),
        ("/mcp?x=1", 'write "/mcp"'),
        ("/mcp#x", 'write "/mcp"'),
        ("http://h/mcp", "URL"),
        ("/a/../mcp", "out of paths"),
        ("/./mcp", "out of paths"),
        ("/m%63p", "without %"),
    ],
)
def test_a_path_that_no_request_has_is_refused(written: str, words: str) -> None:
    message = refusal({"path": written})
    assert message.startswith("path (command line): ")
    assert words in message


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("mcp.example.org", "mcp.example.org"),
        ("MCP.Example.ORG", "mcp.example.org"),
        (" a.example ", "a.example"),
        ("a.example:443", "a.example:443"),
        ("a.example:0443", "a.example:443"),
        ("a.example:*", "a.example"),
        ("*.example.org", "*.example.org"),
        ("*.Example.org:8443", "*.example.org:8443"),
        ("*", "*"),
        ("*:*", "*"),
        ("*:8000", "*:8000"),
        ("my_service", "my_service"),
        ("127.0.0.1:8000", "127.0.0.1:8000"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("[::1]:8000", "[::1]:8000"),
        ("[::1]:*", "[::1]"),
        ("2001:DB8:0:0::1", "[2001:db8::1]"),
        ("[0:0:0:0:0:0:0:1]", "[::1]"),
        ("::ffff:127.0.0.1", "[::ffff:7f00:1]"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
    ],
)
def test_a_host_is_read_in_every_form(written: str, read: str) -> None:
    assert load({"security.allowed_hosts": [written]}, environ={}).settings.security.allowed_hosts == [read]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("https://mcp.example.org", 'no scheme; write "mcp.example.org"'),
        ("http://a:80/x", 'write "a:80"'),
        ("mcp.example.org/", 'no path; write "mcp.example.org"'),
        ("a/mcp", 'write "a"'),
        ("a?x", 'write "a"'),
        ("u@a.example", 'write "a.example"'),
        ('["a.example"]', "without quotes"),
        ("'a.example'", "without quotes"),
        ("a b", "blanks"),
        ("a.example:", "1 to 65535"),
        ("a.example:0", "1 to 65535"),
        ("a.example:65536", "1 to 65535"),
        ("a.example:" + "9" * 5000, "1 to 65535"),
        ("a.example:http", "1 to 65535"),
        ("a.example:\u0661", "1 to 65535"),
        ("", "empty item"),
        (" ", "empty item"),
        (".example.org", 'write "*.example.org"'),
        ("a.example.", 'write "a.example"'),
        ("foo*.example.org", "for subdomains"),
        ("*.*.org", "for subdomains"),
        ("a.*", "for subdomains"),
        ("m\u00fcnchen.de", 'write "xn--mnchen-3ya.de"'),
        ("[127.0.0.1]", "brackets"),
        ("[fe80::1%eth0]", "brackets"),
        ("[::1", "[::1]:8000"),
        ("::1]", "[::1]:8000"),
        ("1:2:3", "[::1]:8000"),
        ("a..b", "no host name"),
        ("-a", "no host name"),
        ("x" * 64, "no host name"),
        (":8000", "no host name"),
        ("a;b", "no host name"),
    ],
)
def test_a_host_that_nothing_can_match_is_refused_with_what_to_write(written: str, words: str) -> None:
    message = refusal({"security.allowed_hosts": ["localhost", written]})
    assert message.startswith("security.allowed_hosts (command line): ")
    assert words in message
    assert "localhost" not in message.partition("; expected")[0]


@pytest.mark.parametrize("written", ["", [], " "])
def test_no_hosts_at_all_are_refused(written: object) -> None:
    assert "expected host names such as" in refusal({"security.allowed_hosts": written})


def test_an_item_that_is_empty_between_others_is_refused() -> None:
    assert "empty item" in refusal(environ={"MCP_HYBRID_SECURITY__ALLOWED_HOSTS": "a.example,,b.example"})
    assert "empty item" in refusal(environ={"MCP_HYBRID_CORS__ALLOWED_ORIGINS": ",https://a.example"})


@pytest.mark.parametrize("key", ["security.allowed_origins", "cors.allowed_origins"])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("https://App.Example.org/", "https://app.example.org"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http://localhost:*", "http://localhost:*"),
        ("null", "null"),
        ("*", "*"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_read_in_every_form(key: str, written: str, read: str) -> None:
    settings = load({key: [written]}, environ={}).settings
    assert getattr(settings, key.partition(".")[0]).allowed_origins == [read]


@pytest.mark.parametrize("key", ["security.allowed_origins", "cors.allowed_origins"])
@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("example.org", 'write "https://example.org"'),
        ("https://a.example/x", 'write "https://a.example"'),
        ("https://a.example//", 'write "https://a.example"'),
        ("https://*.example.org", "compared whole"),
        ("https://*", "compared whole"),
        ("", "empty item"),
        ("https://", "empty item"),
        ("https://u@a", "no user"),
        ("https://a:99999", "1 to 65535"),
        ("https://m\u00fcnchen.de", "xn--mnchen-3ya.de"),
        ("://a", "a scheme"),
    ],
)
def test_an_origin_that_nothing_can_match_is_refused(key: str, written: str, words: str) -> None:
    message = refusal({key: [written]})
    assert message.startswith(f"{key} (command line): ")
    assert words in message


# Session keys


def test_session_keys_are_read_in_both_alphabets_of_base64() -> None:
    urlsafe = KEY.replace("+", "-").replace("/", "_")
    settings = load(environ={"MCP_HYBRID_SESSIONS__KEYS": f"{urlsafe},{OTHER_KEY}"}).settings
    assert settings.sessions.decoded_keys() == [bytes(range(224, 256)), bytes(range(32))]


@pytest.mark.parametrize("bad", ["c2VjcmV0c2VjcmV0", "!secret!", KEY[:-4], KEY + KEY])
def test_a_wrong_session_key_is_told_by_its_position_and_never_shown(bad: str) -> None:
    message = refusal(environ={"MCP_HYBRID_SESSIONS__KEYS": f"{KEY},{bad}"})
    assert message.startswith("sessions.keys (environment MCP_HYBRID_SESSIONS__KEYS): key 2 of 2 is ")
    assert bad not in message
    assert KEY not in message
    with pytest.raises(ValidationError) as caught:
        Settings(sessions={"keys": [bad]})
    assert bad not in str(caught.value)


@pytest.mark.parametrize("bad", [7, {"a": KEY}, [7], [[KEY]]])
def test_session_keys_that_are_no_text_are_refused(bad: object) -> None:
    assert "sessions.keys" in refusal({"sessions": {"keys": [bad]}})


def test_session_keys_show_in_no_representation() -> None:
    settings = Settings(sessions={"keys": [KEY]})
    assert KEY not in repr(settings)
    assert KEY not in str(to_display(settings))
    assert to_display(settings)["sessions.keys"] == "1"


# What a mistake is told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"mode": "statless"},
            "mode (command line): 'statless' is not accepted; expected hybrid, stateless or stateful",
        ),
        ({"path": "/m c"}, "path (command line): '/m c' is not accepted: a path has no blanks"),
        ({"server.port": "65536"}, "server.port (command line): '65536' is not accepted; expected a port"),
        ({"server.workers": 0}, "server.workers (command line): 0 is not accepted; expected a whole number from 1"),
        ({"server.workers": True}, "server.workers (command line): True is not accepted"),
        ({"security.allowed_hosts": ["a", "http://b"]}, "security.allowed_hosts (command line): 'http://b' is not"),
        ({"cors.allowed_origins": "example.org"}, "cors.allowed_origins (command line): 'example.org' is not"),
        ({"log.level": "loud"}, "log.level (command line): 'loud' is not accepted; expected debug, info, warning or"),
        ({"target": 3}, "target (command line): 3 is not accepted"),
    ],
)
def test_a_wrong_value_is_told_its_key_its_origin_and_what_is_accepted(overrides: dict[str, Any], message: str) -> None:
    assert refusal(overrides).startswith(message)


def test_a_wrong_value_in_the_environment_is_told_by_its_variable() -> None:
    assert refusal(environ={"MCP_HYBRID_MODE": "x"}).startswith("mode (environment MCP_HYBRID_MODE): 'x'")


def test_a_wrong_value_in_a_file_is_told_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[server]\nport = 'http'", encoding="utf-8")
    assert refusal(config=path).startswith(f"server.port (file {path}): 'http'")


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("mod", "mode"), ("server.prt", "server.port"), ("port", "server.port"), ("sesions.max_age", "sessions.max_age")],
)
def test_an_unknown_key_is_told_the_nearest_known_one(written: str, nearest: str) -> None:
    assert refusal({written: 1}) == f'unknown setting "{written}" (command line); the nearest is "{nearest}"'


def test_an_unknown_key_in_a_file_is_told_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[sessions]\nmax_aeg = 1", encoding="utf-8")
    expected = f'unknown setting "sessions.max_aeg" (file {path}); the nearest is "sessions.max_age"'
    assert refusal(config=path) == expected


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("MCP_HYBRID_MOD", "MCP_HYBRID_MODE"),
        ("MCP_HYBRID_SERVER_PORT", "MCP_HYBRID_SERVER__PORT"),
        ("MCP_HYBRID_PORT", "MCP_HYBRID_SERVER__PORT"),
        ("MCP_HYBRID_CONFIGURATION", "MCP_HYBRID_CONFIG"),
    ],
)
def test_an_unknown_variable_is_told_the_nearest_known_one(written: str, nearest: str) -> None:
    assert refusal(environ={written: "1"}) == f"unknown environment variable {written}; the nearest is {nearest}"


@pytest.mark.parametrize("overrides", [{"sessions": 3}, {"nothing": {}}, {"mode": {"a": 1}}])
def test_a_value_where_a_section_belongs_and_the_reverse_are_unknown_keys(overrides: dict[str, Any]) -> None:
    assert refusal(overrides).startswith("unknown setting")


def test_a_file_that_is_missing_or_no_toml_or_no_text_is_told_in_one_line(tmp_path: Path) -> None:
    assert refusal(config=tmp_path / "none.toml").endswith("none.toml cannot be read: No such file or directory")
    assert "cannot be read" in refusal(config=tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"mode = \n= 1")
    assert "broken.toml is not TOML: " in refusal(config=broken)
    broken.write_bytes(b"\xff\xfe\x00")
    assert "broken.toml is not TOML: " in refusal(config=broken)


# Handing settings on


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().mode = Mode.STATELESS  # type: ignore[misc] # what the test is about
    with pytest.raises(ValidationError, match="frozen"):
        Settings().server.port = 1  # type: ignore[misc] # what the test is about

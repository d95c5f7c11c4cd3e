"""The configuration file that is shipped says what the model says: every setting, its default, nothing else."""

from __future__ import annotations

import re
import tomllib
from operator import attrgetter
from pathlib import Path

import pytest

from mcp_hybrid.settings import FIELDS, Settings, load

FILE = Path(__file__).parent.parent / "config" / "mcp-hybrid.toml"
COMMENTED_OUT = re.compile(r"^# (\w+ = .+)$", re.MULTILINE)


def flat(text: str) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, value in tomllib.loads(text).items():
        result |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return result


def active() -> dict[str, object]:
    return flat(FILE.read_text(encoding="utf-8"))


def everything() -> dict[str, object]:
    return flat(COMMENTED_OUT.sub(r"\1", FILE.read_text(encoding="utf-8")))


def test_every_setting_appears_and_nothing_else() -> None:
    assert set(everything()) == set(FIELDS)


def test_settings_appear_in_the_order_of_the_model() -> None:
    assert list(everything()) == list(FIELDS)


def test_the_file_loads_to_the_defaults() -> None:
    assert load(environ={}, config=FILE).settings == Settings()


@pytest.mark.parametrize("key", sorted(active()))
def test_each_value_is_the_default(key: str) -> None:
    alone = load({key: active()[key]}, environ={}).settings
    assert attrgetter(key)(alone) == attrgetter(key)(Settings())


def test_what_is_commented_out_has_no_default_and_shows_a_value_that_is_accepted() -> None:
    examples = {key: value for key, value in everything().items() if key not in active()}
    assert {key for key in FIELDS if attrgetter(key)(Settings()) is None} == set(examples)
    load(examples, environ={})


def test_every_setting_has_a_line_of_explanation_above_it() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    settings = [number for number, line in enumerate(lines) if re.match(r"(# )?\w+ = ", line)]
    assert len(settings) == len(FIELDS)
    assert all(re.match(r"# .*\w", lines[number - 1]) for number in settings)

"""CI skips nothing: a test that skips itself there has failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.skipping import ALLOWED

TESTS = Path(__file__).parent

SKIPPING = """
import pytest

@pytest.fixture
def nothing():
    pytest.skip("the fixture has nothing")

def test_by_itself():
    pytest.skip("no such thing here")

@pytest.mark.skipif(True, reason="wrong machine")
def test_by_mark():
    pass

def test_by_its_fixture(nothing):
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_that_is_known_to_fail():
    assert False

def test_that_passes():
    pass
"""


def outcome(folder: Path, source: str, ci: str | None) -> tuple[int, str]:
    """Run tests with nothing of this project but the plugin; give the exit code and what was printed."""
    (folder / "test_it.py").write_text(source, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST"))}
    environ |= {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | (
        {"CI": ci} if ci is not None else {}
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "harness.skipping", "-p", "no:cacheprovider"],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.process
def test_where_ci_is_set_a_skip_is_a_failure_that_says_why(tmp_path: Path) -> None:
    code, printed = outcome(tmp_path, SKIPPING, "true")
    assert (code, "1 failed, 1 passed, 1 xfailed, 2 errors" in printed) == (1, True), printed
    for reason in ("no such thing here", "wrong machine", "the fixture has nothing"):
        assert f"skipped, which CI must not: {reason}" in printed


@pytest.mark.process
@pytest.mark.parametrize("ci", [None, ""])
def test_elsewhere_a_skip_is_a_skip(tmp_path: Path, ci: str | None) -> None:
    code, printed = outcome(tmp_path, SKIPPING, ci)
    assert (code, "1 passed, 3 skipped, 1 xfailed" in printed) == (0, True), printed


@pytest.mark.process
def test_a_module_that_skips_itself_has_failed_too(tmp_path: Path) -> None:
    source = 'import pytest\npytest.skip("not on this system", allow_module_level=True)\n'
    code, printed = outcome(tmp_path, source, "true")
    assert code != 0
    assert "skipped, which CI must not: not on this system" in printed


@pytest.mark.process
def test_what_ci_can_do_nothing_about_may_be_skipped(tmp_path: Path) -> None:
    code, printed = outcome(tmp_path, f"import pytest\ndef test(): pytest.skip({ALLOWED[0]!r})\n", "true")
    assert (code, "1 skipped" in printed) == (0, True), printed


def test_these_tests_are_run_under_that_rule(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("skipping in CI")

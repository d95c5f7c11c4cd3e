"""What runs the tests leaves no process behind, and knows what each test needs."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import settings

from harness import plain_hypercorn, properties

ROOT = Path(__file__).parent.parent
RUNNER = ROOT / "tools" / "run_tests.py"
TIMES = ROOT / "tools" / "test_times.py"

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")

FORGETS = """
import runpy, subprocess, sys
tool = runpy.run_path({runner!r})
tool["adopt_orphans"]()
# A child that leaves a grandchild behind, in a session of its own, as a server's worker would be.
child = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
child += "start_new_session=True).pid, flush=True)"
subprocess.run([sys.executable, "-c", child], check=True)
left = tool["running_after"](0.1)
code = tool["report"](left)
tool["kill_descendants"]()
sys.exit(code if not tool["descendants"]() else 2)
"""

STOPPED = """
import runpy, signal, sys
tool = runpy.run_path({runner!r})
tool["adopt_orphans"]()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, tool["_stop"])
child = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
child += "start_new_session=True).pid, flush=True); time.sleep(600)"
try:
    tool["run"](sys.executable, "-c", child)
except tool["StoppedError"] as stopped:
    tool["kill_descendants"]()
    sys.exit(stopped.exit_code)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def script(source: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(source.format(runner=str(RUNNER)))]


@pytest.mark.process
@needs_linux
def test_a_process_that_a_test_leaves_behind_is_named_and_killed() -> None:
    done = subprocess.run(script(FORGETS), capture_output=True, text=True, timeout=60, check=False)
    pid, told = done.stdout.splitlines()
    assert told.startswith(f"left running by a test: {pid} ")
    assert done.returncode == 1, done.stderr
    assert not runs(int(pid))


@pytest.mark.process
@needs_linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_orphan(number: signal.Signals) -> None:
    with subprocess.Popen(script(STOPPED), stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        orphan = int(run.stdout.readline())
        assert runs(orphan)
        run.send_signal(number)
        assert run.wait(60) == 128 + number
    assert not runs(orphan)


def test_each_tier_says_how_long_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tool = runpy.run_path(str(RUNNER))
    for name, stand_in in (
        ("adopt_orphans", lambda: None),
        ("lint", lambda: 3),
        ("running_after", lambda _: {}),
        ("kill_descendants", lambda: None),
    ):
        monkeypatch.setitem(tool["main"].__globals__, name, stand_in)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "chdir", lambda _: None)
    for tier in ("check", "test", "all"):
        monkeypatch.setattr(sys, "argv", ["run_tests.py", tier])
        assert tool["main"]() == 3
        first, *_, last = capsys.readouterr().out.splitlines()
        assert first == f"{tier}: takes about {tool['TIERS'][tier].takes} on two cores"
        assert last.startswith(f"{tier}: FAILED in ")


UNMARKED = """
import subprocess, sys
import pytest

def start():
    subprocess.run([sys.executable, "-c", ""], check=True)

def test_that_starts_a_program():
    start()

@pytest.mark.process
def test_that_says_so():
    start()

def test_that_starts_none():
    pass
"""


@pytest.mark.process
def test_a_test_that_starts_a_program_unmarked_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(UNMARKED, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    process: x\n    redis: x\n    xdist_group: x\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "harness.kinds", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "mark the test with one of outside, redis, process" in done.stdout


GROUPED = """
import os, pathlib, pytest

@pytest.fixture(scope="module")
def server():
    return os.getpid()

@pytest.mark.parametrize("number", range(8))
def test_with_a_shared_server(server, number):
    pathlib.Path(f"process-{os.getpid()}").touch()
"""


@pytest.mark.process
def test_what_shares_a_fixture_runs_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(GROUPED, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = ["-m", "pytest", "-q", "-p", "harness.kinds", "-p", "xdist", "-n", "3", "--dist", "loadgroup"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert "8 passed" in done.stdout, done.stdout
    assert len(list(tmp_path.glob("process-*"))) == 1


REPORT = """<testsuites><testsuite time="9.5">
<testcase classname="tests.test_b" name="test_x[a|b]" time="2"><properties>
  <property name="kind" value="redis" /></properties></testcase>
<testcase classname="tests.test_a" name="test_y" time="0.5"><properties>
  <property name="kind" value="in process" /></properties></testcase>
</testsuite></testsuites>"""


def test_the_page_is_given_where_the_time_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = runpy.run_path(str(TIMES))
    page, report = tmp_path / "page.md", tmp_path / "report.xml"
    page.write_text(f"before\n{tool['BEGIN']}\nold\n{tool['END']}\nafter\n", encoding="utf-8")
    report.write_text(REPORT, encoding="utf-8")
    monkeypatch.setitem(tool["main"].__globals__, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["test_times.py", "--report", str(report)])
    assert tool["main"]() == 0
    written = page.read_text(encoding="utf-8")
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "2 tests in 10 s" in written
    assert "| Redis | 1 | 2.0 |\n| in process | 1 | 0.5 |" in written
    assert "| test_x[a\\|b] | `test_b.py` | 2.0 |" in written
    assert "old" not in written


@pytest.mark.parametrize(("profile", "count"), [("fixed", 40), ("long", 800), ("", 40)])
def test_the_long_profile_tries_more_examples(profile: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPOTHESIS_PROFILE", profile)
    assert properties.examples(40).max_examples == count


def test_properties_try_the_same_examples_in_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPOTHESIS_PROFILE", raising=False)
    chosen = settings.get_profile(properties.chosen())
    assert chosen.derandomize
    assert chosen.deadline is None


@pytest.mark.parametrize(
    ("tier", "changed", "run"), [("test", False, False), ("test", True, True), ("all", False, True)]
)
def test_plain_hypercorn_is_shown_again_after_a_change(
    tier: str, changed: bool, run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SERVER", "SHOWN"):
        monkeypatch.setattr(plain_hypercorn, name, tmp_path / name)
    monkeypatch.setenv("TESTS_TIER", tier)
    plain_hypercorn.SERVER.mkdir()
    (plain_hypercorn.SERVER / "worker.py").write_text("a", encoding="utf-8")
    plain_hypercorn.SHOWN.write_text(plain_hypercorn.fingerprint(), encoding="utf-8")
    if changed:
        (plain_hypercorn.SERVER / "worker.py").write_text("b", encoding="utf-8")
    assert plain_hypercorn.needed() is run

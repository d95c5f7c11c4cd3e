"""A load with streams that lasts, in its short form; `benchmarks/soak.py` runs it for minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LONGEST = 300
"""Seconds a run may take on a machine that does much else."""

pytestmark = [
    pytest.mark.process,
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory is read from /proc"),
]


@pytest.mark.long
@pytest.mark.parametrize("backplane", ["memory", pytest.param("redis", marks=pytest.mark.redis)])
def test_a_load_with_streams_is_answered_and_its_figures_written(tmp_path: Path, backplane: str) -> None:
    """Whether memory is flat shows in minutes only: of the exit code no more is asked here than right answers."""
    options = ["--minutes", "0.1", "--clients", "1", "--backplane", backplane, "--out", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS / "soak.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    assert "\n0 wrong answers" in done.stdout, done.stdout + done.stderr
    figures = json.loads((tmp_path / f"soak-{backplane}.json").read_text())
    assert set(figures["calls"]) == {"progress", "session", "elicitation", "GET stream", "resumption", "session life"}
    assert [verdict["of"] for verdict in figures["verdicts"]] == ["server", "redis"][: 1 + (backplane == "redis")]
    assert (tmp_path / f"soak-{backplane}.svg").read_text().startswith("<svg")

"""docs/programs.md holds: its example is served with both runtimes, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.clients import Progress, connected
from harness.process import serve
from mcp_hybrid.runtime.choice import ASYNCIO_LIBRARIES

DOCUMENT = (Path(__file__).parent.parent / "docs/programs.md").read_text(encoding="utf-8")


def test_the_libraries_that_are_named_are_on_the_list() -> None:
    (named,) = re.findall(r"known to need it \((.*?) and others", DOCUMENT, re.DOTALL)
    assert set(re.split(r",\s+", named)) <= ASYNCIO_LIBRARIES


@pytest.mark.process
@pytest.mark.parametrize("runtime", ["trio", "asyncio"])
async def test_the_blocking_tool_reports_its_progress(runtime: str, tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "blocking.py").write_text(source)
    with serve(str(tmp_path / "blocking.py"), "--runtime", runtime) as server:
        progress = Progress()
        async with connected(server.url, "legacy") as client:
            result = await client.call_tool("copy", progress_callback=progress)
            assert not result.is_error
            await progress.until(3)
            assert sorted(progress.values) == [1, 2, 3]

"""The example server, with a tool that says how much was left to the garbage collector."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a program that is served by name finds only its own directory

from harness.example import Example

server = Example().server


@server.tool()
async def garbage() -> int:
    """Count the objects that nothing but a collection would have found since the last time."""
    gc.disable()
    return gc.collect()

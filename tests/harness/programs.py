"""The test programs as modules, for tests that serve one in process."""

from __future__ import annotations

import sys
from typing import Any

from harness.process import program
from mcp_hybrid.targets import load_target


def load_program(name: str) -> Any:
    """Import one of the test programs as the server does, and give its module."""
    load_target(program(name))
    return sys.modules[f"mcp_hybrid_target_{name}"]

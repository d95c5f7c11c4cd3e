"""`mcp-hybrid`, with a minute for ending in order: for tests of the order, on a machine that does much else.

Workers are processes of their own; $FORCE_AFTER tells `launched` the same.
"""

from __future__ import annotations

from mcp_hybrid.cli import main
from mcp_hybrid.server import master, stopping

for module in (master, stopping):
    setattr(module, "FORCE_AFTER", 60.0)  # noqa: B010 - Final, but for this

if __name__ == "__main__":
    main()

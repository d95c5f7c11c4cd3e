"""What an operator asks a running server, in HTTP: probes, metrics, and the sessions that are live.

pages     which page is where, and who may read it
health    whether the process answers, and whether it can serve
sessions  the sessions that are live, and their end
"""

from mcp_hybrid.operator.pages import Pages

__all__ = ["Pages"]

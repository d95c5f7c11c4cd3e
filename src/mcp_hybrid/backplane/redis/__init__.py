"""The backplane on Redis, for several workers on one or many machines (`coredis`, which is native on Trio).

Each module adds one thing to the one before it:

connection  one connection, made anew when it breaks
link        operations with a time limit; Redis away, and back
inbox       this worker's lease, and the one blocking reader of what is meant for it
ends        which sessions have ended
logs        streams and their readers, and what a dead worker owed them
backplane   all of it, and session state
scripts     the steps that run inside Redis

Keys, types and lifetimes are listed in `docs/scaling.md`.
"""

from mcp_hybrid.backplane.redis.backplane import RedisBackplane
from mcp_hybrid.backplane.redis.connection import OPERATION
from mcp_hybrid.backplane.redis.ends import FRESH
from mcp_hybrid.backplane.redis.inbox import BEAT, REST
from mcp_hybrid.backplane.redis.link import LEASE

__all__ = ["BEAT", "FRESH", "LEASE", "OPERATION", "REST", "RedisBackplane"]

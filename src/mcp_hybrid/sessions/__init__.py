"""A session's life: offered, live, hibernating, ended. Knows the SDK's connections; nothing of HTTP or ASGI.

record     the unchanging facts of a session
seal       the record as a session id, and back
questions  what the server has asked the client and not yet been told
live       a session in memory
held       the sessions in memory, and which of them may be put away
cleanup    what is to be done after them
registry   which sessions are live, and what an id is worth
"""

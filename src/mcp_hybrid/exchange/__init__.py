"""One request's answer. Knows ASGI's `send` and `receive`, sessions and the backplane; no HTTP server.

sse       framing
timers    things that happen to a call that lasts
progress  the gate that progress passes
reply     one JSON body, or an event stream from the first message that precedes the result
context   what the SDK's kernel is given for one request
outcome   what running a request comes to, as JSON-RPC
standalone  the GET stream, replays, and what is sent outside of any request
modern    what 2026-07-28 asks of an entry
"""

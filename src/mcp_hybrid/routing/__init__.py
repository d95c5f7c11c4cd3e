"""Bytes and headers in, `Route` or `Fault` out. No I/O, no clock; nothing here knows ASGI, HTTP servers or sessions.

head      what is read of the request's head
gates     refusals that every mode shares
media     the forms of answer a client takes
message   the body as JSON-RPC
era       legacy or modern
table     the decision table
progress  whether progress is served
modes     what the operator chooses
"""

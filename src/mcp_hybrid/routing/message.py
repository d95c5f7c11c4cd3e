"""A POST body read as JSON-RPC 2.0, whole: one message, or a batch of them.

The shape is checked here and only here. What a method's parameters must look like is the SDK's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeGuard

from mcp_types import PROTOCOL_VERSION_META_KEY, ProgressToken, RequestId
from pydantic_core import from_json

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.routing.depth import MOST_CONTAINERS, PLAIN, has_too_many, is_deeper

BATCH_LIMIT: Final = 100
"""Messages in one batch. A 4 MiB body holds a hundred thousand pings; nobody needs them answered at once."""

LONGEST_ID: Final = 1024
"""Characters of the longest request id or progress token. They are kept, sent to other workers, and go back with every
message. The longest ones that clients make are UUIDs."""

_INTEGER_IDS: Final = range(-(2**63), 2**64)
"""Integers that are ids: other languages read them into 64 bits, with a sign or without."""

LONGEST_METHOD: Final = 256
"""Characters of the longest method."""

_BOM: Final = b"\xef\xbb\xbf"
"""Some clients write it before their JSON. RFC 8259, section 8.1, lets a parser ignore it."""

_PARSER_GAVE_UP: Final = "recursion limit"
"""What the parser's error says of a body that is deeper than it can read: some 200 levels."""

LONGEST_NAME: Final = 256
"""Characters of the name of a tool or prompt. The specification recommends 128 at most (server/tools, "Tool Names")."""

_NAMING: Final = frozenset({"tools/call", "prompts/get"})

ABSENT: Final = object()
"""What `envelope_version` returns where there is no such key: null is a value that can be sent."""


@dataclass(frozen=True, slots=True)
class Request:
    """A JSON-RPC request: it is owed an answer."""

    id: RequestId
    method: str
    params: dict[str, Any] | None
    raw: dict[str, Any]
    """The decoded body as it was sent, for the SDK's classifier."""

    @property
    def progress_token(self) -> ProgressToken | None:
        """The token that opts in to progress. `0` and `""` are tokens; it keeps its JSON type."""
        token = self._meta.get("progressToken")
        return token if isinstance(token, str | int) and not isinstance(token, bool) else None

    @property
    def name(self) -> str | None:
        """The tool or prompt that is meant, for the log."""
        name = (self.params or {}).get("name")
        return name if isinstance(name, str) else None

    @property
    def _meta(self) -> Mapping[str, Any]:
        meta = (self.params or {}).get("_meta")
        return meta if isinstance(meta, dict) else {}


@dataclass(frozen=True, slots=True)
class Notification:
    """A JSON-RPC notification: it is never answered."""

    method: str
    params: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Response:
    """The client's answer to something the server asked."""

    id: RequestId | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


Message: TypeAlias = Request | Notification | Response


@dataclass(frozen=True, slots=True)
class Batch:
    """Several messages in one body (JSON-RPC 2.0, section 6). MCP had them at 2025-03-26 only."""

    messages: tuple[Message, ...]


def parse_body(body: bytes, depth: int) -> Message | Batch | Fault:
    """Read a whole body, nested at most `depth` levels deep.

    Never raises; a refusal says what was wrong and echoes the request's id where it could.
    """
    if len(body) > PLAIN and has_too_many(body):
        return Fault(Cause.BODY_TOO_LARGE, f"The body has more than {MOST_CONTAINERS} arrays and objects.")
    try:
        decoded = from_json(body.removeprefix(_BOM), allow_inf_nan=False)
    except ValueError as error:
        if _PARSER_GAVE_UP in str(error):
            return _too_deep(depth)
        # Not only syntax: invalid UTF-8, lone surrogates and numbers of thousands of digits land here as well.
        return Fault(Cause.NOT_JSON, "The body is not valid JSON in UTF-8.")
    if is_deeper(decoded, body, depth):
        return _too_deep(depth)
    if isinstance(decoded, list):
        return _batch(decoded)
    return _message(decoded)


def envelope_version(message: Message | Batch | None) -> object:
    """Return `params._meta["io.modelcontextprotocol/protocolVersion"]`, or `ABSENT`. A batch's is its first."""
    if isinstance(message, Batch):
        versions = (envelope_version(part) for part in message.messages)
        return next((version for version in versions if version is not ABSENT), ABSENT)
    if message is None or isinstance(message, Response):
        return ABSENT
    meta = (message.params or {}).get("_meta")
    return meta.get(PROTOCOL_VERSION_META_KEY, ABSENT) if isinstance(meta, dict) else ABSENT


def _too_deep(depth: int) -> Fault:
    return Fault(Cause.TOO_DEEP, f"The arrays and objects of the body are nested deeper than {depth} levels.")


def _batch(decoded: list[Any]) -> Batch | Fault:
    if not decoded:
        return Fault(Cause.NOT_A_MESSAGE, "An empty batch is not a JSON-RPC message.")
    if len(decoded) > BATCH_LIMIT:
        return Fault(Cause.NOT_A_MESSAGE, f"A batch may hold at most {BATCH_LIMIT} messages; this one has more.")
    messages: list[Message] = []
    for index, part in enumerate(decoded):
        message = _message(part)
        if isinstance(message, Fault):
            return Fault(message.cause, f"Message {index} of the batch: {message.message}")
        messages.append(message)
    ids = [message.id for message in messages if isinstance(message, Request)]
    if len({(type(id_), id_) for id_ in ids}) < len(ids):
        return Fault(Cause.NOT_A_MESSAGE, "Two requests of the batch have the same id.")
    return Batch(tuple(messages))


def _message(decoded: Any) -> Message | Fault:
    if not isinstance(decoded, dict):
        return Fault(Cause.NOT_A_MESSAGE, "A JSON-RPC message is a JSON object.")
    id_ = decoded.get("id")
    known_id = id_ if is_request_id(id_) else None
    if decoded.get("jsonrpc") != "2.0":
        return Fault(Cause.NOT_A_MESSAGE, 'A JSON-RPC message has "jsonrpc": "2.0".', known_id)
    return _call(decoded, known_id) if "method" in decoded else _response(decoded, known_id)


def _call(decoded: dict[str, Any], id_: RequestId | None) -> Request | Notification | Fault:
    method, params = decoded["method"], decoded.get("params")
    if not isinstance(method, str) or len(method) > LONGEST_METHOD:
        words = f'"method" must be a string of at most {LONGEST_METHOD} characters.'
        return Fault(Cause.NOT_A_MESSAGE, words, id_)
    if params is not None and not isinstance(params, dict):
        return Fault(Cause.NOT_A_MESSAGE, '"params" must be an object.', id_)
    if (fault := _name_too_long(method, params, id_)) is not None:
        return fault
    if "id" not in decoded:
        return Notification(method, params)
    if id_ is None:
        # Taking a malformed id for "no id" would answer 202 to a request that is owed an error.
        return Fault(Cause.NOT_A_MESSAGE, f'"id" must be {_ID_WORDS}.')
    return _checked(Request(id_, method, params, decoded))


def _checked(request: Request) -> Request | Fault:
    token = request.progress_token
    if token is not None and not is_request_id(token):
        return Fault(Cause.NOT_A_MESSAGE, f'"progressToken" must be {_ID_WORDS}.', request.id)
    return request


def _name_too_long(method: str, params: dict[str, Any] | None, id_: RequestId | None) -> Fault | None:
    """Refuse a name that no server has, before it is looked for, echoed and logged."""
    name = params.get("name") if params is not None and method in _NAMING else None
    if isinstance(name, str) and len(name) > LONGEST_NAME:
        return Fault(Cause.NAME_TOO_LONG, f'"name" is longer than {LONGEST_NAME} characters.', id_)
    return None


def _response(decoded: dict[str, Any], id_: RequestId | None) -> Response | Fault:
    result, error = decoded.get("result"), decoded.get("error")
    is_result = isinstance(result, dict) and "error" not in decoded and id_ is not None
    is_error = (
        "result" not in decoded
        and isinstance(error, dict)
        and isinstance(error.get("code"), int)
        and isinstance(error.get("message"), str)
        and (id_ is not None or decoded.get("id") is None)
    )
    if is_result or is_error:
        return Response(id_, result, error)
    if decoded.keys() & {"id", "result", "error"}:
        return Fault(Cause.NOT_A_MESSAGE, 'A response has an "id" and either a "result" object or an "error".', id_)
    return Fault(Cause.NOT_A_MESSAGE, 'A JSON-RPC message has a "method", or it is a response.')


_ID_WORDS: Final = f"a string of at most {LONGEST_ID} characters or an integer of 64 bits"


def is_request_id(value: object) -> TypeGuard[RequestId]:
    """Whether a value can be a request's id: text, or an integer, of bounded size."""
    if isinstance(value, str):
        return len(value) <= LONGEST_ID
    return isinstance(value, int) and not isinstance(value, bool) and value in _INTEGER_IDS

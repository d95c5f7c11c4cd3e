"""The everything server's tools that answer a call with questions (2026-07-28, SEP-2322), round by round.

A resolver, as in the demo, would be shorter; but it names its questions itself, and the suite wants its own names.
"""

from __future__ import annotations

from collections.abc import Mapping

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    ListRootsResult,
    SamplingMessage,
    TextContent,
)


def form(message: str, field: str, kind: str = "string") -> ElicitRequest:
    """Ask the person for one value."""
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(text: str, max_tokens: int) -> CreateMessageRequest:
    """Ask the client's model."""
    message = SamplingMessage(role="user", content=TextContent(text=text))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens))


def asking(questions: Mapping[str, InputRequest], state: str | None = None) -> InputRequiredResult:
    return InputRequiredResult(input_requests=dict(questions), request_state=state)


def field_of(ctx: Context, key: str, field: str) -> object | None:
    """Return what the person entered, or None where there is no such answer."""
    answer = (ctx.input_responses or {}).get(key)
    if isinstance(answer, ElicitResult) and answer.action == "accept" and answer.content is not None:
        return answer.content.get(field)
    return None


def sampled(ctx: Context, key: str) -> str | None:
    """Return what the client's model said, or None where there is no such answer."""
    answer = (ctx.input_responses or {}).get(key)
    if isinstance(answer, CreateMessageResult) and isinstance(answer.content, TextContent):
        return answer.content.text
    return None


def roots(ctx: Context) -> list[str] | None:
    """Return the client's roots, or None where it did not say."""
    answer = (ctx.input_responses or {}).get("client_roots")
    return [str(root.uri) for root in answer.roots] if isinstance(answer, ListRootsResult) else None


Round = str | InputRequiredResult


async def elicitation(ctx: Context) -> Round:
    """Ask for a name."""
    name = field_of(ctx, "user_name", "name")
    return asking({"user_name": form("What is your name?", "name")}) if name is None else f"Hello, {name}!"


async def sampling(ctx: Context) -> Round:
    """Ask the client's model."""
    said = sampled(ctx, "capital_question")
    if said is None:
        return asking({"capital_question": sample("What is the capital of France?", 100)})
    return f"The model said: {said}"


async def list_roots(ctx: Context) -> Round:
    """Ask for the client's roots."""
    found = roots(ctx)
    return asking({"client_roots": ListRootsRequest()}) if found is None else f"Roots: {', '.join(found)}"


async def request_state(ctx: Context) -> Round:
    """Hand out a state and check that it comes back. The SDK seals and opens it."""
    if ctx.request_state != "confirming" or field_of(ctx, "confirm", "ok") is None:
        return asking({"confirm": form("Please confirm", "ok", "boolean")}, "confirming")
    return "state-ok"


async def multiple_inputs(ctx: Context) -> Round:
    """Ask three things at once."""
    name, greeting, found = field_of(ctx, "user_name", "name"), sampled(ctx, "greeting"), roots(ctx)
    if name is None or greeting is None or found is None:
        questions: dict[str, InputRequest] = {
            "user_name": form("What is your name?", "name"),
            "greeting": sample("Write a greeting", 50),
            "client_roots": ListRootsRequest(),
        }
        return asking(questions, "all-three")
    return f"{name}: {greeting} ({len(found)} roots)"


async def multi_round(ctx: Context) -> Round:
    """Ask for a name, then for a colour; the state carries the name into the last round."""
    state = ctx.request_state or ""
    if state.startswith("named:"):
        color = field_of(ctx, "step2", "color")
        if color is not None:
            return f"{state.removeprefix('named:')} likes {color}"
    elif state == "first" and (name := field_of(ctx, "step1", "name")) is not None:
        return asking({"step2": form("What is your favorite color?", "color")}, f"named:{name}")
    return asking({"step1": form("What is your name?", "name")}, "first")


async def tampered_state(ctx: Context) -> Round:
    """Hand out a state that the SDK seals, so that a changed one is refused before it gets here."""
    if ctx.request_state is None:
        return asking({"confirm": form("Please confirm", "ok", "boolean")}, "sealed")
    return "The state was intact"


async def capabilities(ctx: Context) -> Round:
    """Ask only what this client says it can answer."""
    declared = ctx.client_capabilities
    if ctx.input_responses:
        return f"Answered: {', '.join(sorted(ctx.input_responses))}"
    questions: dict[str, InputRequest] = {}
    if declared is not None and declared.elicitation is not None:
        questions["user_name"] = form("What is your name?", "name")
    if declared is not None and declared.sampling is not None:
        questions["greeting"] = sample("Write a greeting", 50)
    return asking(questions) if questions else "There is nothing that this client could be asked"


async def test_input_required_result_prompt(ctx: Context) -> Round:
    """A prompt that asks for what it is about."""
    context = field_of(ctx, "user_context", "context")
    if context is None:
        return asking({"user_context": form("What should the prompt be about?", "context")})
    return f"Please write about {context}."


TOOLS = (
    elicitation,
    sampling,
    list_roots,
    request_state,
    multiple_inputs,
    multi_round,
    tampered_state,
    capabilities,
)


def add_input_required(server: MCPServer) -> None:
    """Give a server these tools and the prompt."""
    for tool in TOOLS:
        server.add_tool(tool, name=f"test_input_required_result_{tool.__name__}")
    server.prompt()(test_input_required_result_prompt)

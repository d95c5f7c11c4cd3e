"""Everything that the conformance suite of the Model Context Protocol looks for, as an ordinary `MCPServer` program.

    mcp-hybrid serve tests/conformance/everything.py

The names are the suite's. What `MCPServer` has no public way for stands at the end, under "Below MCPServer".
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal, TypeVar

import anyio
from contents import JSON_SCHEMA, embedded, png, wav
from input_required import add_input_required
from mcp.server import MCPServer, ServerRequestContext
from mcp.server.elicitation import ElicitationResult
from mcp.server.mcpserver import Context, UserMessage
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve, Sample
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.types import Audio, Image
from mcp.shared.exceptions import MCPDeprecationWarning
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    EmbeddedResource,
    EmptyResult,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field

# Logging and sampling are deprecated from 2026-07-28 on; the suite asks for them at the revisions that have them.
warnings.filterwarnings("ignore", category=MCPDeprecationWarning)

PAUSE = 0.05
"""Seconds between two things that a tool says."""

# Two tools are made ahead of the server: the one that must come first, and the one whose schema is written by hand.


async def test_simple_text() -> str:
    """Answer with a text."""
    return "This is a simple text response for testing."


async def json_schema_2020_12_tool(
    name: str = "",
    address: dict[str, Any] | None = None,
    contact_method: Annotated[str, Field(alias="contactMethod")] = "",
    phone: str = "",
    email: str = "",
) -> str:
    """Show a schema that uses what JSON Schema 2020-12 has."""
    return f"{name}: {address}, {contact_method}, {phone}, {email}"


server = MCPServer(
    "everything",
    version="1",
    tools=[
        Tool.from_function(test_simple_text),
        Tool.from_function(json_schema_2020_12_tool).model_copy(update={"parameters": JSON_SCHEMA}),
    ],
)


# Tools: content


@server.tool()
async def test_image_content() -> Image:
    """Answer with an image."""
    return Image(data=png(), format="png")


@server.tool()
async def test_audio_content() -> Audio:
    """Answer with a sound."""
    return Audio(data=wav(), format="wav")


@server.tool()
async def test_embedded_resource() -> EmbeddedResource:
    """Answer with a resource."""
    return embedded("test://embedded-resource", "This is an embedded resource content.")


@server.tool()
async def test_multiple_content_types() -> list[TextContent | Image | EmbeddedResource]:
    """Answer with a text, an image and a resource."""
    text = TextContent(text="Multiple content types test:")
    return [text, Image(data=png(), format="png"), embedded("test://mixed-content-resource", '{"test":"data"}')]


@server.tool()
async def test_error_handling() -> str:
    """Fail in a way that the model should see."""
    raise ToolError("This tool intentionally returns an error for testing")


@server.tool()
async def test_x_mcp_header(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})],
    count: int,
) -> str:
    """Take an argument that its caller repeats in the header Mcp-Param-Region."""
    return f"{region} x {count}"


# Tools: what goes to the client while they run


@server.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Report progress three times."""
    for progress in (0, 50, 100):
        await ctx.report_progress(progress, 100, f"Completed step {progress} of 100")
        await anyio.sleep(PAUSE)
    return "done"


@server.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Log three messages."""
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(text)
        await anyio.sleep(PAUSE)
    return "Tool with logging executed successfully"


@server.tool()
async def test_logging_tool(ctx: Context) -> str:
    """Log one message, which is sent only if the request asked for log messages."""
    await ctx.info("A message from test_logging_tool")
    return "logged"


@server.tool()
async def test_reconnection(ctx: Context) -> str:
    """Close the call's own stream; the result comes on the one that the client resumes."""
    await ctx.close_sse_stream()
    await anyio.sleep(0.1)
    return "Reconnection test completed successfully"


# The tools do not change: telling of a change is all that is asked for, and the listing must stay in order.


@server.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    """Tell listeners that the tools have changed."""
    await ctx.notify_tools_changed()
    return "told"


@server.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    """Tell listeners that the prompts have changed."""
    await ctx.notify_prompts_changed()
    return "told"


# Tools: questions to the client


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Have the client's model answer a prompt."""
    question = SamplingMessage(role="user", content=TextContent(text=prompt))
    request = CreateMessageRequest(params=CreateMessageRequestParams(messages=[question], max_tokens=100))
    related = ServerMessageMetadata(related_request_id=ctx.request_id)  # asked on this call's own stream
    answer = await ctx.session.send_request(request, CreateMessageResult, metadata=related)
    return f"LLM response: {answer.content.text if isinstance(answer.content, TextContent) else answer.content.type}"


class Person(BaseModel):
    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


class Defaults(BaseModel):
    """One field of every type, each with a default (SEP-1034)."""

    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Annotated[str, Field(json_schema_extra={"enum": ["active", "inactive", "pending"]})] = "active"
    verified: bool = True


OPTIONS = ["option1", "option2", "option3"]
TITLED = [{"const": value, "title": f"Option {number}"} for number, value in enumerate(OPTIONS, start=1)]


class Choices(BaseModel):
    """The five ways to offer a choice (SEP-1330). The names are the suite's, which writes them in camel case."""

    single: Annotated[str, Field(alias="untitledSingle", json_schema_extra={"enum": list(OPTIONS)})]
    titled: Annotated[str, Field(alias="titledSingle", json_schema_extra={"oneOf": list(TITLED)})]
    legacy: Annotated[
        str,
        Field(
            alias="legacyEnum",
            json_schema_extra={"enum": list(OPTIONS), "enumNames": ["Option 1", "Option 2", "Option 3"]},
        ),
    ]
    multi: Annotated[list[Literal["option1", "option2", "option3"]], Field(alias="untitledMulti")]
    titled_multi: Annotated[list[str], Field(alias="titledMulti", json_schema_extra={"items": {"anyOf": list(TITLED)}})]


Form = TypeVar("Form", bound=BaseModel)


async def ask(ctx: Context, message: str, form: type[Form]) -> str:
    answer = await ctx.elicit(message, form)
    content = answer.data.model_dump_json(by_alias=True) if answer.action == "accept" else "none"
    return f"action={answer.action}, content={content}"


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    """Ask the person at the client for a name and an address."""
    return f"User response: {await ask(ctx, message, Person)}"


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Ask with a form that suggests the answers."""
    return f"Elicitation completed: {await ask(ctx, 'Please review the suggested values', Defaults)}"


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Ask with a form of choices."""
    return f"Elicitation completed: {await ask(ctx, 'Please choose', Choices)}"


# From 2026-07-28 on, a resolver's question is the call's answer; a client that cannot be asked is told so by the SDK.


async def model_greeting() -> Sample:
    return Sample([SamplingMessage(role="user", content=TextContent(text="Say hello"))], max_tokens=20)


@server.tool()
async def test_missing_capability(greeting: Annotated[CreateMessageResult, Resolve(model_greeting)]) -> str:
    """Need sampling, which not every client has."""
    return f"The model is {greeting.model}"


async def who() -> Elicit[Person]:
    return Elicit("Who is there?", Person)


@server.tool()
async def test_streaming_elicitation(person: Annotated[ElicitationResult[Person], Resolve(who)]) -> str:
    """Ask without sending a request of its own."""
    return f"The answer was: {person.action}"


add_input_required(server)


# Resources


@server.resource("test://static-text", mime_type="text/plain")
async def static_text() -> str:
    """A text."""
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
async def static_binary() -> bytes:
    """An image."""
    return png()


@server.resource("test://watched-resource", mime_type="text/plain")
async def watched_resource() -> str:
    """A resource that can be subscribed to."""
    return "Watched resource content"


@server.resource("test://template/{id}/data", mime_type="application/json")
async def template_data(id: str) -> dict[str, Any]:  # noqa: A002  # the suite's name for it
    """A resource for every id."""
    return {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}


# Prompts


@server.prompt()
async def test_simple_prompt() -> str:
    """A prompt without arguments."""
    return "This is a simple prompt for testing."


@server.prompt()
async def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """A prompt with two arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@server.prompt()
async def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803  # the suite's name
    """A prompt that brings a resource along."""
    resource = embedded(resourceUri, "Embedded resource content for testing.")
    return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]


@server.prompt()
async def test_prompt_with_image() -> list[UserMessage]:
    """A prompt that brings an image along."""
    return [UserMessage(Image(data=png(), format="png")), UserMessage("Please analyze the image above.")]


@server.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # the SDK left it without types
async def complete(_ref: object, _argument: object, _context: object) -> Completion:
    """Suggest nothing, which the suite is content with."""
    return Completion(values=[], total=0, has_more=False)


# Below MCPServer: three methods that it leaves to the application without a public way to add them.


async def set_level(_ctx: ServerRequestContext, _params: SetLevelRequestParams) -> EmptyResult:
    """Accept the level; everything logged here is `info`, which is what the suite asks for."""
    return EmptyResult()


async def subscribe(_ctx: ServerRequestContext, _params: SubscribeRequestParams) -> EmptyResult:
    """Accept a subscription to a resource that never changes."""
    return EmptyResult()


async def unsubscribe(_ctx: ServerRequestContext, _params: UnsubscribeRequestParams) -> EmptyResult:
    """Forget a subscription that was not kept."""
    return EmptyResult()


_handlers = server._lowlevel_server  # no public name leads to it
_handlers.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)
_handlers.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
_handlers.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe)

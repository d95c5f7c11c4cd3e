"""Answers a server's question (elicitation): by asking the person at the terminal, or by declining."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import anyio.to_thread
from mcp.client import ClientRequestContext
from mcp.client.session import ElicitationFnT
from mcp_types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, FloatPrompt, IntPrompt, Prompt

from mcp_hybrid.client.screen import Screen, printable, say

Field = str | int | float | bool | list[str] | None


def answering(screen: Screen) -> ElicitationFnT:
    """Make the SDK's elicitation callback, which asks on `screen`."""

    async def answer(
        context: ClientRequestContext,  # noqa: ARG001  # the SDK's protocol names its parameters
        params: ElicitRequestParams,
    ) -> ElicitResult:
        message = printable(params.message)
        if not isinstance(params, ElicitRequestFormParams):
            say(f"declined: the server asks to visit {printable(params.url)} ({message})")
            return ElicitResult(action="decline")
        if not (sys.stdin.isatty() and screen.interactive):
            say(f"declined, as there is no terminal to ask on: {message}")
            return ElicitResult(action="decline")
        with screen.paused() as console:
            # A thread waits for the keyboard; ctrl-C abandons it, and the program ends without it.
            return await anyio.to_thread.run_sync(ask, console, params, abandon_on_cancel=True)

    return answer


def ask(console: Console, params: ElicitRequestFormParams) -> ElicitResult:
    """Ask for every field of the form. Blocks; the end of the input (ctrl-D) declines."""
    console.print(f"[bold]{escape(printable(params.message))}[/bold] (ctrl-D declines)")
    required = params.requested_schema.get("required") or []
    content: dict[str, Field] = {}
    try:
        for name, schema in params.requested_schema.get("properties", {}).items():
            value = _ask_field(console, name, schema, required=name in required)
            if value is not None:
                content[name] = value
    except EOFError:
        console.print()
        return ElicitResult(action="decline")
    return ElicitResult(action="accept", content=content)


def _ask_field(console: Console, name: str, schema: Mapping[str, Any], *, required: bool) -> Field:
    """Ask for one field until it can be read; nothing typed leaves an optional one out."""
    label = escape(printable(schema.get("description") or schema.get("title") or name))
    kind = schema.get("type")
    if kind == "boolean":
        return Confirm.ask(label, console=console, default=bool(schema.get("default", False)))
    if kind == "array":
        return _ask_several(console, label, schema, required=required)
    if not required and "default" not in schema:
        label = f"{label} (optional)"
    while True:
        value = _ask_scalar(console, label, schema, optional=not required)
        if value != "" or not required:
            return value if value != "" else None
        console.print("[red]an answer is needed[/red]")


def _ask_scalar(console: Console, label: str, schema: Mapping[str, Any], *, optional: bool) -> str | int | float:
    """Ask for a text, a number or a choice; the empty text if nothing was typed."""
    default = schema.get("default", "")
    prompts: dict[Any, type[Prompt | IntPrompt | FloatPrompt]] = {"integer": IntPrompt, "number": FloatPrompt}
    prompt = prompts.get(schema.get("type"), Prompt)
    value: str | int | float = prompt.ask(
        label,
        console=console,
        choices=[*_choices(schema), ""] if optional and _choices(schema) else _choices(schema) or None,
        default=default,
        show_default=default != "",
    )
    return value


def _ask_several(console: Console, label: str, schema: Mapping[str, Any], *, required: bool) -> list[str] | None:
    """Ask for any number of a fixed set of texts."""
    choices = _choices(schema.get("items", {}))
    while True:
        typed = Prompt.ask(
            f"{label} (some of {escape(', '.join(choices))}; commas between)", console=console, default=""
        )
        chosen = [text.strip() for text in typed.split(",") if text.strip()]
        if all(text in choices for text in chosen):
            return chosen if chosen or required else None
        console.print("[red]choose from the list[/red]")


def _choices(schema: Mapping[str, Any]) -> list[str]:
    """List the values a field may have: `enum`, or the constants of `oneOf` or `anyOf`, which carry titles."""
    titled = schema.get("oneOf") or schema.get("anyOf") or []
    return list(schema.get("enum") or [one["const"] for one in titled if "const" in one])

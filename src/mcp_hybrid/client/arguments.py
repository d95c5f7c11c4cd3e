"""From `key=value` on a command line to the arguments of a tool, with the tool's input schema to settle doubts.

`a=1` is the number 1, except where the schema says that `a` is text; then it is the text "1".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn


class UsageError(Exception):
    """A mistake of the person at the command line, said in one line."""


def split(pairs: Iterable[str]) -> dict[str, str]:
    """Split each `key=value` at its first `=`.

    Raises:
        UsageError: a pair has no `=` or no key, or a key comes twice.
    """
    texts: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{pair!r} is not an argument: write key=value")
        if key in texts:
            raise UsageError(f"the argument {key!r} is given twice")
        texts[key] = text
    return texts


def typed(texts: Mapping[str, str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Give each text the type that `schema`, a tool's input schema, asks for."""
    properties = schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    return {key: _typed_one(text, known.get(key)) for key, text in texts.items()}


def nearest(name: str, names: list[str]) -> str:
    """Say what may have been meant by an unknown name."""
    if close := get_close_matches(name, names, n=1, cutoff=0.5):
        return f"did you mean {close[0]!r}?"
    return f"it has {', '.join(sorted(names))}" if names else "it has none"


def _typed_one(text: str, schema: Any) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    allowed = _allowed_types(schema)
    others = allowed - {"string"}
    return text if "string" in allowed and not others & _types_of(value) else value


def _no_constant(name: str) -> NoReturn:
    """Refuse `NaN` and `Infinity`, which Python reads but JSON does not have."""
    raise ValueError(name)


def _allowed_types(schema: Any) -> set[str]:
    """Collect the type names a property may have; empty if its schema does not say."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type", [])
    types = {named} if isinstance(named, str) else set(named)
    if "enum" in schema and not types:
        types = set().union(*(_types_of(value) for value in schema["enum"]))
    for arm in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
        types |= _allowed_types(arm)
    return types


def _types_of(value: Any) -> set[str]:
    """Name the JSON Schema types a parsed value has."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}

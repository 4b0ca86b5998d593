"""The caller's functions as an MCP server: what its client is answered, however the messages travel."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from container_runner.session import jsonrpc
from container_runner.session.asks import Image, ToolAnswer
from container_runner.session.tools import Tool
from container_runner.stream.blocks import as_text

SERVER: Final = "container_runner"
"""What the agent calls the MCP server that the caller's tools are. Its tools are `mcp__container_runner__NAME`."""

VERSION: Final = "2025-06-18"
"""The protocol's version for a client that names none."""


@attrs.frozen
class Called:
    """A request that wants a tool called."""

    name: str
    input: Mapping[str, Any]


def respond(request: Mapping[str, Any], tools: Sequence[Tool]) -> dict[str, Any] | Called:
    """The answer to a request, or the call that it asks for. Notifications have none."""
    name, method, params = request.get("id"), as_text(request.get("method")), request.get("params")
    params = params if isinstance(params, dict) else {}
    match method:
        case "initialize":
            return jsonrpc.answered(
                name,
                {
                    "protocolVersion": as_text(params.get("protocolVersion")) or VERSION,
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": SERVER, "version": "1"},
                },
            )
        case "tools/list":
            return jsonrpc.answered(name, {"tools": [_listed(tool) for tool in tools]})
        case "ping":
            return jsonrpc.answered(name, {})
        case "tools/call":
            given = params.get("arguments")
            return Called(as_text(params.get("name")), given if isinstance(given, dict) else {})
        case _:
            return jsonrpc.refused(name, jsonrpc.METHOD_NOT_FOUND, f"no method {method}")


def answered(name: object, answer: ToolAnswer) -> dict[str, Any]:
    """What a tool has given back, as the answer to the request with this id."""
    return jsonrpc.answered(name, {"content": [_block(part) for part in answer.content], "isError": answer.is_error})


def _listed(tool: Tool) -> dict[str, Any]:
    told = {"name": tool.name, "description": tool.description, "inputSchema": dict(tool.input_schema)}
    return {**told, "_meta": {"anthropic/alwaysLoad": True}}  # else claude would have to search for it first


def _block(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "data": base64.b64encode(part.data).decode(), "mimeType": part.media_type}

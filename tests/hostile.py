"""What an agent could write to harm whoever reads its transcript."""

from __future__ import annotations

from typing import Any

import orjson

PWN = "document.title='pwned';document.documentElement.className='pwned'"

PAYLOADS = [
    f"<script>{PWN}</script>",
    f"</style><script>{PWN}</script>",
    f"</title></head><body><script>{PWN}</script>",
    f"</pre></details></main><script>{PWN}</script>",
    f'<img src=x onerror="{PWN}">',
    f'"><img src=x onerror="{PWN}">',
    f"' onmouseover='{PWN}' x='",
    f'<svg onload="{PWN}">',
    f'<svg><script>{PWN}</script></svg>',
    f"<svg><animate onbegin=\"{PWN}\" attributeName=x dur=1s>",
    f'<math><mtext><table><mglyph><style><img src=x onerror="{PWN}">',
    f'<details open ontoggle="{PWN}">',
    f'<body onload="{PWN}">',
    f"<iframe srcdoc=\"<script>parent.{PWN}</script>\"></iframe>",
    f'<iframe src="javascript:{PWN}"></iframe>',
    f'<object data="data:text/html,<script>{PWN}</script>"></object>',
    f'<embed src="data:image/svg+xml,<svg onload={PWN}>">',
    '<meta http-equiv="refresh" content="0;url=https://example.org/">',
    '<base href="https://example.org/">',
    '<link rel=stylesheet href="https://example.org/a.css">',
    "<style>body{display:none}</style>",
    '<form action="https://example.org"><input name=a><button>',
    f"[click](javascript:{PWN})",
    f"[click](JaVaScRiPt:{PWN})",
    f"[click](java\nscript:{PWN})",
    f"[click](\x01javascript:{PWN})",
    f"[click](&#106;avascript:{PWN})",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    f"[click](vbscript:{PWN})",
    "[click](file:///etc/passwd)",
    f"<javascript:{PWN}>",
    f"[a]: javascript:{PWN}\n\n[a]",
    f'[a](https://example.org "x\\" onclick=\\"{PWN}")',
    f"![x](javascript:{PWN})",
    "![x](https://example.org/track.png)",
    "![x][y]\n\n[y]: https://example.org/track.png",
    f"```<script>{PWN}</script>\ncode\n```",
    f'```" onclick="{PWN}\ncode\n```',
    f"`<script>{PWN}</script>`",
    "| a | b |\n|---|---|\n| <script> | x |",
    "<!-- <script>",
    "<![CDATA[ <script> ]]>",
    "${style_hash} $title $body $$",
    "\u202egnp.exe\u202c \u2066hidden\u2069 \u061c \u200e",
    "\x1b[31mred\x1b]0;title\x07\x9b31m\x00",
    "\u2028\u2029\ufeff\u200b",
    "> " * 500 + "deep",
    "- " * 500 + "deep",
    "[" * 2000 + "a" + "](b)" * 2000,
    "*" * 5000,
    "a" * 100_000,
    "<" * 10_000,
    "&lt;script&gt; &amp;#x3c;script",
]  # fmt: skip


def everywhere(payload: str) -> list[bytes]:
    """The lines of a transcript in which *payload* stands in every place that there is."""
    text = {"type": "text", "text": payload}
    edit = {"file_path": payload, "old_string": payload, "new_string": f"{payload}\nmore"}
    patch = {"structuredPatch": [{"oldStart": payload, "lines": [f"+{payload}", f"-{payload}", payload]}]}
    messages: list[tuple[str, dict[str, Any]]] = [
        ("runner", {"type": "start", "prompt": payload}),
        ("agent", {"type": "system", "subtype": "init", "session_id": payload, "model": payload, "cwd": payload}),
        ("agent", _assistant(text, {"type": "thinking", "thinking": payload})),
        ("agent", _assistant({"type": "tool_use", "id": payload, "name": payload, "input": {payload: payload}})),
        ("agent", _assistant({"type": "tool_use", "id": "e", "name": "Edit", "input": edit})),
        ("agent", _assistant({"type": "tool_use", "id": "w", "name": "Write", "input": {"content": payload}})),
        ("agent", {**_assistant(text), "parent_tool_use_id": payload}),
        ("agent", _result(payload, payload, None)),
        ("agent", _result("e", payload, patch)),
        ("agent", _result("w", [text, {"type": "image", "source": payload}], payload)),
        ("agent", {"type": "output", "text": payload}),
        ("agent", {"type": "oversized", "size": 7, "head": payload}),
        ("agent", {"type": payload, payload: payload}),
        ("agent", {"type": "result", "subtype": payload, "is_error": True, "result": payload, "errors": [payload],
                   "num_turns": 1, "modelUsage": {payload: {"inputTokens": payload, "costUSD": 1}}}),
        ("runner", {"type": "restart", "message": payload}),
        ("runner", {"type": "error", "kind": payload, "message": payload, "next_step": payload, "stderr": payload}),
    ]  # fmt: skip
    return [
        orjson.dumps(
            {"time": f"2026-11-23T18:00:{number:02}Z", "run": "r", "agent": "a", "from": source, "message": message}
        )
        for number, (source, message) in enumerate(messages)
    ]


def _assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"type": "assistant", "message": {"id": "m", "role": "assistant", "model": "x", "content": list(blocks)}}


def _result(tool_use_id: str, content: Any, details: Any) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": tool_use_id, "content": content, "is_error": False}
    return {"type": "user", "message": {"role": "user", "content": [block]}, "tool_use_result": details}

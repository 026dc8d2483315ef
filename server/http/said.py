"""said: what the user says in a request of any of the server's APIs."""

from collections.abc import Callable, Mapping
from typing import Any

from layerloom.server.languages import MOST, turns_of

Decode = Callable[[list[int]], str]


def said_in(body: Mapping[str, Any], decode: Decode | None) -> list[str]:
    """The turns of a conversation (chat, messages, responses), or the prompts of a completion, as texts.

    `decode` makes text of prompts that are token ids. What has a form that no API has is passed over.
    """
    if "messages" in body:
        return turns_of(body["messages"])
    given = body.get("input")
    if given is not None:
        return [given] if isinstance(given, str) else turns_of(given)
    prompt = body.get("prompt")
    prompts = prompt if isinstance(prompt, list) and not all(isinstance(each, int) for each in prompt) else [prompt]
    return [text for each in prompts if (text := text_of(each, decode)) is not None]


def text_of(prompt: Any, decode: Decode | None) -> str | None:
    if isinstance(prompt, str):
        return prompt
    ids = prompt[: 2 * MOST] if isinstance(prompt, list) else []
    if decode is None or not ids or not all(isinstance(each, int) and 0 <= each < 1 << 31 for each in ids):
        return None
    return decode(ids)

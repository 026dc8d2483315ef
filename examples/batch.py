"""Many questions to many models: JSON lines in, JSON lines out, all compositions in one batch of one engine.

    python examples/batch.py demo < questions.jsonl > answers.jsonl

A line has `model` and `messages` or `prompt`; what else it has comes back with its answer: `text`, and as `model` the
composition that gave it, or `error`.
"""

import asyncio
import json
import sys
from itertools import islice
from typing import Any

from layerloom.server import AsyncRuntime

AT_ONCE, MAX_TOKENS = 256, 64


async def answered(runtime: AsyncRuntime, line: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    try:
        row = {**json.loads(line)}
        ask = runtime.answer if "messages" in row else runtime.complete
        asked = row.pop("messages", None) or row.pop("prompt")
        answer = await ask(row["model"], asked, max_tokens=MAX_TOKENS)
    except RuntimeError:  # the engine has died
        raise
    except Exception as error:
        return {**row, "error": f"{type(error).__name__}: {error}"}
    return {**row, "model": answer.model, "text": answer.text}


async def main(family: str) -> None:
    # On a GPU leave kv_cache_memory_bytes out.
    async with AsyncRuntime(family, kv_cache_memory_bytes=2**30) as runtime:
        while lines := list(islice(sys.stdin, AT_ONCE)):
            for row in await asyncio.gather(*(answered(runtime, line) for line in lines)):
                print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

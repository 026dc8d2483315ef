"""A tutor: a pupil asks, `math+auto` answers in the pupil's language, piece by piece, and the thread is kept.

Run it with `python examples/tutor.py` and open http://localhost:8001. Environment: FAMILY (demo), MODEL, PORT.
"""

import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import uvicorn
from fastapi import Body, Cookie, FastAPI, HTTPException
from fastapi.responses import HTMLResponse, StreamingResponse

from layerloom.server import AsyncRuntime

FAMILY = os.environ.get("FAMILY", "demo")
MODEL = os.environ.get("MODEL", "math+auto")
MOST_THREADS, MOST_MESSAGES, LONGEST = 10_000, 8, 300

Thread = deque[dict[str, str]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # On a GPU leave kv_cache_memory_bytes out.
    async with AsyncRuntime(FAMILY, kv_cache_memory_bytes=2**30) as app.state.runtime:
        yield


app = FastAPI(title="Tutor", lifespan=lifespan)
threads: OrderedDict[str, Thread] = OrderedDict()


def thread_of(pupil: str) -> Thread:
    """What the two have said last; the pupil that has been away longest is forgotten."""
    thread = threads[pupil] = threads.pop(pupil, deque(maxlen=MOST_MESSAGES))
    if len(threads) > MOST_THREADS:
        threads.popitem(last=False)
    return thread


@app.get("/")
async def page() -> HTMLResponse:
    answer = HTMLResponse(Path(__file__).with_name("tutor.html").read_text())
    answer.set_cookie("pupil", uuid4().hex, httponly=True, samesite="lax")
    return answer


@app.post("/ask")
async def ask(text: Annotated[str, Body(max_length=LONGEST)], pupil: Annotated[str, Cookie()]) -> StreamingResponse:
    thread = thread_of(pupil)
    question = {"role": "user", "content": text}
    parts = app.state.runtime.chat(MODEL, [*thread, question], max_tokens=64)
    try:
        first = await anext(parts)
    except ValueError as error:  # too long, or in no language of the family's
        raise HTTPException(400, str(error)) from error

    async def said() -> AsyncIterator[str]:
        yield (answer := first.text)
        # A pupil who goes away ends this, and so the request.
        async with aclosing(parts):
            async for part in parts:
                answer += part.text
                yield part.text
        thread.extend([question, {"role": "assistant", "content": answer}])

    return StreamingResponse(said(), media_type="text/plain; charset=utf-8", headers={"X-Model": first.model})


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8001")))

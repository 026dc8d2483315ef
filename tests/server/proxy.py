"""proxy: a reverse proxy that has a server under a path of its own, and does not tell it so."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from serving import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

DROPPED = ("host", "connection", "transfer-encoding", "content-length", "content-encoding")


@contextmanager
def behind(prefix: str, url: str) -> Iterator[str]:
    """Yields the address, prefix included, at which what `url` serves is then found, and nothing else."""
    client = httpx.AsyncClient(base_url=url, timeout=120)

    async def forward(request: Request) -> StreamingResponse:
        path = request.url.path.removeprefix(prefix) + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in DROPPED}
        asked = client.build_request(request.method, path, headers=headers, content=await request.body())
        answer = await client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name not in DROPPED}
        return StreamingResponse(answer.aiter_bytes(), answer.status_code, kept)

    app = Starlette(routes=[Route(prefix + "/{path:path}", forward, methods=["GET", "POST"])])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}{prefix}"
    finally:
        server.should_exit = True
        thread.join()

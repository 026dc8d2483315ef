"""studio: a page to see a family with, and what it asks the server beside vLLM's routes and the operators'.

The page and its files hold nothing and are open; all that they show needs the API key.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from layerloom.composer import Family

from .changes import Changes, cost
from .glance import Glance
from .living import Living
from .operators import bank_of, living_of, residents, shown_of
from .portrait import plans, portrait
from .visit import told

router = APIRouter(prefix="/studio", include_in_schema=False)

FILES = Path(__file__).parents[1] / "studio"
PATHS = frozenset({"/studio", "/studio/", *(f"/studio/{file.name}" for file in FILES.iterdir())})
"""What needs no API key."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
        "object-src 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FRESH = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""For what must come as it is said, through proxies too."""

MOST_NAMES = 32

files = StaticFiles(directory=FILES)


class Studio:
    """What the page is told, kept as long as it holds."""

    def __init__(self, living: Living, lifetime: Any) -> None:
        self.living = living
        self.glance = Glance(living)
        self.changes = Changes(living, lambda: lifetime.ending)
        self._drawing = asyncio.Lock()
        self._drawn: tuple[Family, bytes] | None = None

    async def portrait(self) -> bytes:
        """The family in JSON. Raises ComposeError."""
        async with self._drawing:
            family = self.living.family
            if self._drawn is None or self._drawn[0] is not family:
                found = await asyncio.to_thread(portrait, self.living, family)
                self._drawn = family, json.dumps(found).encode()
            return self._drawn[1]


def studio_of(request: Request) -> Studio:
    state = request.app.state
    if not hasattr(state, "layerloom_studio"):
        state.layerloom_studio = Studio(living_of(request), state.layerloom)
    found: Studio = state.layerloom_studio
    return found


@router.get("/family")
async def family(request: Request) -> Response:
    """The experts, and every composition layer by layer."""
    with told("family"):
        return Response(await studio_of(request).portrait(), media_type="application/json", headers=FRESH)


@router.get("/plans")
async def plans_of(request: Request, name: Annotated[list[str], Query(max_length=MOST_NAMES)]) -> dict[str, Any]:
    """Compositions by name, which need not be the family's own."""
    return plans(living_of(request), name)


@router.get("/live")
async def live(request: Request) -> dict[str, Any]:
    """The bank and what is in it."""
    living = living_of(request)
    with told():
        said, age = await studio_of(request).glance.look()
    there = sorted(residents(said).values(), key=lambda each: -each["last_used"])
    return {
        "family": living.family.digest,
        "age": age,
        "now": time.time(),
        "servers": living.servers,
        "bank": bank_of(said).model_dump(),
        "compositions": [shown_of(living, each["name"], each["digest"], each) for each in there],
    }


@router.get("/changes")
async def changes_so_far(request: Request) -> dict[str, Any]:
    """What is known of where experts change, and what it would cost to know."""
    changes = studio_of(request).changes
    return {
        "bytes": cost(changes.living.family),
        "running": changes.running,
        "changes": changes.known,
    }


@router.post("/changes")
async def measure_changes(request: Request) -> StreamingResponse:
    """Measures it, where it is not known: lines of JSON that say how far it is, and then the result."""
    follow = studio_of(request).changes.follow()

    async def lines() -> AsyncIterator[str]:
        async for line in follow:
            yield json.dumps(line) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=FRESH)


@router.get("/suggestion")
async def suggestion(request: Request, name: Annotated[str, Query(max_length=4096)]) -> dict[str, Any]:
    """A split for a pair, from where its experts change."""
    changes = studio_of(request).changes
    if changes.known is None and cost(changes.living.family) == 0:
        # Another server process may have it.
        async for _ in changes.follow():
            pass
    with told("name"):
        found = await asyncio.to_thread(changes.suggest, name)
    return {
        "name": found.name,
        "bottom": found.bottom,
        "top": found.top,
        "transition": found.transition,
        "is_clear": found.is_clear,
        "reasoning": found.reasoning(),
    }


@router.get("")
async def nearly() -> RedirectResponse:
    """Relative, because a proxy may have the server under a path that it does not know."""
    return RedirectResponse("studio/", 307, HEADERS)


@router.get("/")
@router.head("/")
async def page(request: Request) -> Response:
    return await static("index.html", request)


@router.get("/{file}")
@router.head("/{file}")
async def static(file: str, request: Request) -> Response:
    response = await files.get_response(file, request.scope)
    response.headers.update(HEADERS)
    return response

"""leases: the compositions that this server's requests use, held in every worker of every engine."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import uniform
from typing import Any, TypeVar
from uuid import uuid4

from vllm.engine.protocol import EngineClient
from vllm.lora.request import LoRARequest

from layerloom.composer import ComposeError
from layerloom.server.engine.manager import BUSY, HELD, REFUSED, Answer

T = TypeVar("T")

LONGEST = 600.0
"""Seconds in which a composition must have been read and assembled."""

SOONEST, LATEST = 0.005, 0.1
"""Seconds between asking again."""

HURRY = 10.0
"""Seconds after which others let one pass that would wait for ever."""

LINGER = 1.0
"""Seconds that a composition is still held after its last request, so that the next one need not wait for workers."""


class Unavailable(ComposeError):
    """What was asked for is right, and cannot be had now."""


@dataclass
class Lease:
    """A composition with `users` requests."""

    request: LoRARequest
    users: int = 0
    held: bool = False
    """Whether all workers hold it."""
    told: bool = False
    """Whether some may: they were asked to, and not to let go of it since."""
    leaving: bool = False
    """Whether it is about to be let go of, if no request comes."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Leases:
    """Counts the requests of each composition in this process, and tells the workers of the first and the last one.

    What the workers are told comes to each engine in the order in which it was sent, behind the requests and the aborts
    that were sent before it: when a composition is let go of, no request of this server's for it is left there.
    """

    def __init__(self, client: EngineClient, patience: float | None) -> None:
        self.client = client
        self.patience = patience
        """Seconds that a request waits for room before it is refused; None: it is not."""
        self.closed = False
        self.told = 0
        """How often workers were told what may have changed what they hold."""
        self.on_made: Callable[[float], None] | None = None
        """Called with the seconds that one took that was not there."""
        self._holder = uuid4().hex
        self._leases: dict[str, Lease] = {}
        self._line = asyncio.Lock()
        """Had by the request that is next when there is room; the others queue for it."""
        self._hurry = False
        """The one that has it has waited so long that requests for what is held must queue behind it, too."""
        self._short = asyncio.Event()
        """Somebody is in the line: what has no request is let go of at once."""
        self._freed = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    async def let_pass(self) -> None:
        """Waits behind those who have waited long. Not for who holds something, which they may be waiting for."""
        if self._hurry:
            async with self._turn():
                pass

    async def acquire(self, request: LoRARequest) -> Lease:
        """Holds a composition until `release`. Raises ComposeError, or Unavailable."""
        lease = self._leases.setdefault(request.lora_path, Lease(request))
        lease.users += 1
        try:
            if not lease.held or lease.changing.locked():
                async with lease.changing:
                    if not lease.held:
                        await self._hold(lease)
        except BaseException:
            self.release(lease)
            raise
        return lease

    def release(self, lease: Lease) -> None:
        lease.users -= 1
        if lease.users == 0 and not lease.leaving:
            lease.leaving = True
            task = asyncio.ensure_future(self._let_go(lease))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def dismiss(self, request: LoRARequest) -> None:
        """Lets go of a composition at once that is only held for the next request."""
        lease = self._leases.get(request.lora_path)
        if lease is not None:
            await self._free(lease)

    def users(self, digest: str) -> int:
        """How many of this server's requests use a composition, or wait for it."""
        lease = self._leases.get(digest)
        return 0 if lease is None else lease.users

    async def _let_go(self, lease: Lease) -> None:
        if lease.held:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    await self._short.wait()
        lease.leaving = False
        await self._free(lease)
        if lease.users == 0 and self._leases.get(lease.request.lora_path) is lease:
            del self._leases[lease.request.lora_path]

    async def _free(self, lease: Lease) -> None:
        """Has no worker hold what no request uses."""
        async with lease.changing:
            if lease.users == 0 and lease.told:
                # Who waits for room asks behind this, and need not wait for its answer.
                self._freed.set()
                await self._tell_release(lease)

    async def _hold(self, lease: Lease) -> None:
        while not lease.held:
            if self._line.locked() or not await self._find_room(lease):
                await self._wait_for_room(lease)
            # Whoever is next in the line looks for room while this one is made.
            await self._wait_until_made(lease)

    async def _wait_for_room(self, lease: Lease) -> None:
        async with self._turn():
            clock = asyncio.get_running_loop().time
            began = clock()
            self._short.set()
            try:
                while True:
                    self._freed.clear()
                    if await self._find_room(lease):
                        break
                    self._hurry = clock() - began > (HURRY if self.patience is None else self.patience / 3)
                    with suppress(TimeoutError):
                        # Two servers that hold what the other waits for must not ask in step.
                        async with asyncio.timeout(uniform(LATEST / 2, LATEST)):
                            await self._freed.wait()
            finally:
                self._hurry = False
                self._short.clear()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The first place in the line. Raises Unavailable when that, and what is done there, takes too long."""
        try:
            async with asyncio.timeout(self.patience), self._line:
                yield
        except TimeoutError:
            raise Unavailable(
                f"all room for compositions was in use by others for {self.patience:.0f} s: try again, or start the "
                "server with a larger --bank-memory"
            ) from None

    async def _find_room(self, lease: Lease) -> bool:
        """Whether all workers hold it, or have the room for it and make it; where one has none, none keeps any."""
        request = lease.request
        lease.told = True
        answers: list[Answer] = await self.tell(
            "hold_composition", request.lora_name, request.lora_path, request.lora_int_id, self._holder
        )
        for state, reason in answers:
            if state == REFUSED:
                raise ComposeError(f"{request.lora_name} could not be assembled: {reason}")
        states = {state for state, _ in answers}
        lease.held = states == {HELD}
        if BUSY in states:
            await self._tell_release(lease)
        return BUSY not in states

    async def _wait_until_made(self, lease: Lease) -> None:
        """Until all workers hold it, or it has lost its room to others. Raises Unavailable."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(LONGEST):
                while not lease.held:
                    # What takes long is not asked for often.
                    await asyncio.sleep(min(max((time.perf_counter() - began) / 4, SOONEST), LATEST))
                    if not await self._find_room(lease):
                        return
                    if lease.held and self.on_made is not None:
                        self.on_made(time.perf_counter() - began)
        except TimeoutError:
            raise Unavailable(f"{lease.request.lora_name} could not be read within {LONGEST:.0f} s") from None

    async def _tell_release(self, lease: Lease) -> None:
        lease.held = lease.told = False
        with suppress(Unavailable):
            # Engines that have ended hold nothing.
            await self.tell("release_composition", lease.request.lora_path, lease.request.lora_int_id, self._holder)

    async def tell(self, method: str, *args: Any) -> list[Any]:
        """The answers of all workers of all engines. Raises Unavailable."""
        self.told += method != "report_compositions"
        core = self.client.engine_core
        call = "collective_rpc", method, None, args, {}
        calls = [core._call_utility_async(*call, engine=engine) for engine in core.core_engines]
        return [answer for answers in await self._while_alive(asyncio.gather(*calls)) for answer in answers]

    async def _while_alive(self, call: Awaitable[T]) -> T:
        """The result of a call that engines answer, or not: nobody tells those who wait when an engine has died."""
        task = asyncio.ensure_future(call)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=LATEST)
                if not task.done() and (self.closed or self.client.errored):
                    break
            else:
                return task.result()
        except ComposeError:
            raise
        except Exception as error:
            if not (self.closed or self.client.errored):
                # So it is when a worker has died and the engine is about to.
                raise Unavailable(f"the engine has ended, or does not answer: {error}") from error
        finally:
            task.cancel()
        raise Unavailable("the server is shutting down" if self.closed else "the engine has ended")

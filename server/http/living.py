"""living: the family that a server serves, what its names mean, and how another takes its place."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from random import uniform
from typing import Any
from uuid import uuid4

from vllm.logger import init_logger

from layerloom.composer import ComposeError, Composition, Family, Plan
from layerloom.composer.errors import in_a_line
from layerloom.server.engine.families import ABSENT, BROKEN, LOADING, READY, SWITCHED, State
from layerloom.server.languages import Languages
from layerloom.server.options import load_family, lora_request
from layerloom.server.voices import Voices

from .leases import LATEST, LONGEST, Leases, Unavailable
from .series import series

logger = init_logger("vllm.layerloom")

LOOK = 0.25
"""Seconds between looking whether another server loads the family."""

MOST_PLANS = 1024
"""Names whose plans are remembered."""


class Superseded(Exception):
    """Another server loads the family already."""


class Living:
    """The family as this server knows it. Engines keep the one before, so that servers need not switch at once.

    Of several servers the one that is told to reload proposes, and the engines' workers keep the proposal, where the
    others look: each loads the family, too, and votes. When all have it the engines switch, and then the servers.
    """

    def __init__(
        self, settings: dict[str, Any], family: Family, leases: Leases, voices: Voices, index: int, servers: int
    ) -> None:
        self.settings = settings
        self.index, self.servers = index, servers
        self.leases = leases
        self.voices = voices
        self._one = asyncio.Lock()
        self.called = asyncio.Event()
        """Another server may be about to load the family."""
        self.call: Callable[[], None] = call_nobody
        """Sets that in the others."""
        self._own = ""
        """The last token of this server's."""
        self.adopt(family)

    def adopt(self, family: Family) -> None:
        """Serves this family from now on."""
        self.family = family
        self.created = modified(family.path)
        self.languages = Languages(family)
        allow = self.settings["allow_recipes"]
        self.parse: Callable[[str], Composition] = lru_cache(MOST_PLANS)(lambda name: family.parse(name, allow))
        self.plan: Callable[[str], Plan] = lru_cache(MOST_PLANS)(lambda name: family.plan(self.parse(name)))
        self.voices.speak_for(family)

    def plan_for(self, name: str, turns: Callable[[], Sequence[str]], accept: str = "") -> Plan:
        """What a name means to who has said `turns`. Raises ComposeError."""
        return self.plan(self.languages.meant(self.parse(name), turns, accept).name)

    async def preload(self) -> None:
        """Has what the family says made, and pinned; what cannot be made is logged, and is an error when asked for."""
        pinned = {plan.digest for plan in self.family.pinned}
        asked = [*self.family.preload, *self.settings.get("preload", ())]
        if asked:
            logger.info("layerloom: makes %d compositions before they are asked for", len(asked))
        for wanted in asked:
            name = wanted if isinstance(wanted, str) else wanted.name
            try:
                plan = self.plan(wanted) if isinstance(wanted, str) else wanted
                if plan.is_base:
                    continue
                request = lora_request(plan)
                lease = await self.leases.acquire(request)
            except ComposeError as error:
                # A name may be gone with the family that had it.
                logger.error("layerloom: %s could not be preloaded: %s", name, error)
                continue
            try:
                if plan.digest in pinned:
                    await self.leases.tell("pin_composition", request.lora_int_id)
            finally:
                self.leases.release(lease)

    async def reload(self) -> bool:
        """Loads the family anew, here and in all engines, and switches to it; whether anything is different.

        Raises ComposeError with what is wrong, and then nothing has changed. One at a time; the next waits.
        """
        async with self._one:
            before = self.family.digest
            try:
                family = await self._in_turn()
            except ComposeError as error:
                series().reloads.labels("broken").inc()
                problem = f"the family stays as it was: {without_paths(error, self.family.root)}"
                logger.error("layerloom: %s", problem)
                if isinstance(error, Unavailable):
                    raise
                raise ComposeError(problem) from error
            series().reloads.labels("good").inc()
            self.adopt(family)
            await self.preload()
            logger.info("layerloom: serves %d compositions of family %s", len(family.names()), family.digest[:12])
            return family.digest != before

    async def _in_turn(self) -> Family:
        """The family that all have switched to. Another server may be about to do the same: that is waited for."""
        try:
            async with asyncio.timeout(LONGEST):
                while True:
                    with suppress(Superseded):
                        return await self._switched()
                    await asyncio.sleep(uniform(LATEST, LOOK))
        except TimeoutError:
            raise ComposeError(f"it could not be loaded everywhere within {LONGEST:.0f} s") from None

    async def _switched(self) -> Family:
        """The family that all engines have switched to. Raises Superseded when another server was first."""
        token = self._own = uuid4().hex
        family = await asyncio.to_thread(self._load)
        try:
            await self.leases.tell("renew_family", "begin", token)
            while LOADING in (states := await self._states("state", token)):
                await asyncio.sleep(LATEST)
            broken = [detail for state, detail in states.items() if state == BROKEN]
            if broken:
                raise ComposeError(broken[0])
            if ABSENT in states:
                raise Superseded
            if states != {READY: family.digest}:
                raise ComposeError("files changed while they were loaded: try again")
            await self._all_have(token, family.digest)
            states = await self._states("switch", token)
            if set(states) != {SWITCHED}:
                raise Superseded
        except BaseException:
            await asyncio.shield(self.leases.tell("renew_family", "drop", token))
            raise
        return family

    def _load(self) -> Family:
        try:
            family = load_family(self.settings)
            Languages(family).prepare()
            return family
        except ComposeError:
            raise
        except Exception as error:
            raise ComposeError(f"{type(error).__name__}: {error}") from error

    async def _all_have(self, token: str, digest: str) -> None:
        """Waits for the other servers. Raises ComposeError when one has something else."""
        while len(votes := (await self.leases.tell("look_at_families"))[0][2]) < self.servers - 1:
            self.call()
            await asyncio.sleep(LOOK)
        others = {found for found in votes.values() if found != digest}
        if others:
            raise ComposeError(f"a server process has {min(others)}")

    async def follow(self) -> None:
        """Does what the other servers do, whenever one calls."""
        voted, prepared, known = "", None, (await self.leases.tell("look_at_families"))[0][1]
        while True:
            await self.called.wait()
            await asyncio.sleep(LOOK)
            try:
                token, last, _ = (await self.leases.tell("look_at_families"))[0]
                if token in ("", self._own):
                    self.called.clear()
                if token not in ("", voted, self._own):
                    voted, prepared = token, None
                    try:
                        prepared = await asyncio.to_thread(self._load)
                        found = prepared.digest
                    except ComposeError as error:
                        found = without_paths(error, self.family.root)
                    await self.leases.tell("vote_on_family", token, str(self.index), found)
                if last != known:
                    known = last
                    if last == voted and prepared is not None:
                        self.adopt(prepared)
                        await self.preload()
            except Unavailable:
                # The engine has ended, and so will this server.
                return

    async def _states(self, action: str, token: str) -> dict[str, str]:
        """What workers say: what is different, once."""
        answers: list[State] = await self.leases.tell("renew_family", action, token)
        digests = {detail for state, detail in answers if state == READY}
        if len(digests) > 1:
            return {BROKEN: f"workers read different files: {', '.join(sorted(digest[:12] for digest in digests))}"}
        return {state: detail for state, detail in answers}


def call_nobody() -> None:
    """For a server that is alone."""


def modified(file: Path) -> int:
    """When it was last written to, in seconds since 1970; 0 where that cannot be told any more."""
    with suppress(OSError):
        return int(file.stat().st_mtime)
    return 0


def without_paths(error: ComposeError, root: Path) -> str:
    """What is wrong, without where this machine has the family."""
    return in_a_line(error).replace(f"{root}/", "")

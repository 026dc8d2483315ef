"""families: the family that is served, the one before it, and one that is to take its place."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from layerloom.composer import Bank, ComposeError, Engine, Family, Plan
from layerloom.composer.errors import in_a_line
from layerloom.composer.pages.arena import megabytes
from layerloom.composer.pages.budget import needed

LOADING, READY, BROKEN, ABSENT, SWITCHED = "loading", "ready", "broken", "absent", "switched"

LONGEST = 600.0
"""Seconds after which whoever has begun counts as gone."""

State = tuple[str, str]
"""One of these; and the family's digest, or what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Served:
    """A family and the bank of its compositions."""

    family: Family
    bank: Bank
    digests: frozenset[str] = frozenset()
    """Those of all its compositions; of the first family nobody asks for them."""


class Families:
    """What names mean to this engine.

    `begin` loads and checks a family on a thread, `switch` puts it in the place of the one that is served. That stays
    beside it until the next: servers do not all switch in the same moment, and requests may be on their way.
    """

    def __init__(self, family: Family, engine: Engine, mixed: int, capacity: int, load: Callable[[], Family]) -> None:
        self.engine = engine
        self.mixed = mixed
        self.capacity = capacity
        self.memory = 0
        """Bytes of the bank."""
        self.switches = 0
        self._load = load
        self._now = Served(family, Bank(family, engine))
        self._before: Served | None = None
        self._token, self._until = "", 0.0
        self._next: Served | None = None
        self._state: State = ABSENT, ""
        self._votes: dict[str, str] = {}
        self._last = ""

    @property
    def family(self) -> Family:
        return self._now.family

    @property
    def bank(self) -> Bank:
        return self._now.bank

    @property
    def digests(self) -> frozenset[str]:
        """Those of all compositions of a family that was switched to."""
        return self._now.digests

    def fit(self, memory: int | None, recipes: bool) -> None:
        """Sets the memory to what is given, or what it takes. Raises ComposeError where that is too little."""
        wanted = self._wanted(self.bank)
        if memory is None:
            # A composition that only a client's recipe names can be a whole model of its own.
            memory = wanted + recipes * sum(map(self.engine.bytes, range(self.family.depth + 1)))
        self.memory = memory
        self._check_room(self.family, wanted)

    def plan(self, name: str, digest: str) -> tuple[Bank, Plan]:
        """What a server means by a name, in this family or the one before. Raises ComposeError."""
        others, unknown = [], None
        for served in filter(None, (self._now, self._before)):
            try:
                plan = served.family.plan(name)
            except ComposeError as error:
                unknown = unknown or error
                continue
            if plan.digest == digest:
                return served.bank, plan
            others.append(plan.digest[:12])
        if unknown is not None and not others:
            raise unknown
        has = " and before ".join(others)
        raise ComposeError(
            f"{name}: the request was made for digest {digest[:12]}, this engine's family has {has}. Were files "
            "changed while serving? Load the family anew: POST /v1/family/reload"
        )

    def begin(self, token: str) -> None:
        """Loads the family's files, for the first who wants that; its token is ABSENT for others until it is done."""
        if self._token and time.monotonic() < self._until:
            return
        self._until = time.monotonic() + LONGEST
        self._token, self._next, self._state, self._votes = token, None, (LOADING, ""), {}
        threading.Thread(target=self._work, args=(token,), name="layerloom-family", daemon=True).start()

    def state(self, token: str) -> State:
        return self._state if token == self._token else (ABSENT, "")

    def drop(self, token: str) -> None:
        if token == self._token:
            self._token, self._next, self._state = "", None, (ABSENT, "")

    def switch(self, token: str) -> bool:
        """False where there is nothing to switch to."""
        ready = self._next if self.state(token)[0] == READY else None
        self.drop(token)
        if ready is not None:
            self._last = token
            self._before, self._now = self._now, ready
            self.switches += 1
        return ready is not None

    def vote(self, token: str, server: str, found: str) -> None:
        """What another of the servers says of what is to come: the digest it has read, or why it cannot."""
        if token == self._token:
            self._votes[server] = found

    def board(self) -> tuple[str, str, dict[str, str]]:
        """For servers to look at: the token of what is to come, that of what was switched to last, and the votes."""
        return self._token, self._last, self._votes

    def _work(self, token: str) -> None:
        ready: Served | None = None
        try:
            family = self._load()
            digests = frozenset(family.plan(name).digest for name in family.names())
            ready = Served(family, self._bank_of(family), digests)
            state = READY, family.digest
        except ComposeError as error:
            state = BROKEN, in_a_line(error)
        except Exception as error:
            state = BROKEN, f"{type(error).__name__}: {error}"
        if token == self._token:
            self._next, self._state = ready, state

    def _bank_of(self, family: Family) -> Bank:
        """The bank of a family that is to take this one's place. Raises ComposeError where it cannot."""
        if family.base.revision != self.family.base.revision:
            raise ComposeError("the base is another one, and its weights are in the engine: restart the server for it")
        bank = Bank(family, self.engine, before=self.bank)
        self._check_room(family, self._wanted(bank))
        return bank

    def _wanted(self, bank: Bank) -> int:
        family = bank.family
        return needed(map(family.plan, family.names()), self.mixed, bank, family.pinned)

    def _check_room(self, family: Family, wanted: int) -> None:
        pinned, count = family.pinned, len(family.names())
        if wanted > self.memory:
            beside = f", and {len(pinned)} pinned ones always," if pinned else ""
            raise ComposeError(
                f"any {self.mixed} of {count} compositions at once{beside} need {megabytes(wanted)} of bank memory, "
                f"and there are {megabytes(self.memory)}: start with a larger --bank-memory or a smaller --max-loras"
            )
        if len(pinned) + self.mixed > self.capacity:
            raise ComposeError(
                f"{len(pinned)} pinned compositions and {self.mixed} in a batch are more than --max-cpu-loras "
                f"{self.capacity}: start with a larger one"
            )

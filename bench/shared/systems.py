"""systems: the ways to serve several languages that are compared, each a server or several over HTTP."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from .device import on_device
from .loads import Ask, Driven, Load, drive, grouped
from .materials import TASK, Materials, size_of
from .memory import memory_of
from .served import Served, layerloom, on_cores, served, stock

NAMES = ("merged", "base", "layerloom", "engines", "restarted", "lora-RANK", "layerloom-CODEC[-delta]")
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank may be; 512 is the largest of vLLM 0.32."""

MARGIN = 1.25
"""Of an engine's memory that has to be free for another one: where memory ends, Linux ends anybody."""

Seconds = dict[str, float]
"""Of the steps of adding a language: `make` files, `start` or `load`, and the `first` token."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all systems of a run."""

    materials: Materials
    options: Sequence[str]
    mixed: int
    """Languages that one batch may mix."""
    prompts: Sequence[Sequence[int]]
    tokens: int
    """Of an answer."""
    place: Path
    """Where logs go."""
    pages: Sequence[str] = ()
    """Options of layerloom's servers alone."""
    restart: float = 0.0
    """Seconds from ending an engine to the first token of the next one."""


@dataclass(frozen=True)
class Limits:
    """How many clients a closed loop has, after how many seconds no request is begun, and an open loop's rate."""

    clients: int
    seconds: float
    rate: float


class Unsuited(Exception):
    """A system that is not tried with a load, and why."""


class System(ABC):
    """Its servers start when the first language is added that needs them, and end with `close`."""

    judged = True
    """Whether its answers are those of the languages that were asked for."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        self.setting = setting
        self.materials = setting.materials
        self.servers: list[Served] = []
        self._stack = ExitStack()

    @abstractmethod
    def add(self, language: int) -> Seconds:
        """Makes what the language needs, until it has answered one token. Empty where nothing is needed."""

    @abstractmethod
    def address(self, language: int) -> tuple[str, str]:
        """Of the server, and the model's name there."""

    async def run(self, load: Load, asks: Sequence[Ask], limits: Limits, tokens: int | None = None) -> Driven:
        """All of the requests. Raises Refused, or Unsuited."""
        clients = limits.clients if load.arrival == "closed" else None
        wanted = tokens or self.setting.tokens
        return await drive(asks, self.address, self.setting.prompts, wanted, clients, limits.seconds)

    @abstractmethod
    def disk(self, languages: int) -> int:
        """Bytes of the files that serving so many takes, without those that they were made of."""

    def memory(self) -> int:
        """Bytes of all its processes, on the host and on the device; files and memory that they share counted once."""
        pids = [pid for server in self.servers for pid in server.processes]
        found = [memory_of(pid) for pid in pids]
        shared = max(each.mapped for each in found) + max(each.shared for each in found)
        return sum(each.anonymous for each in found) + shared + on_device(pids)

    def computed(self) -> float:
        """Seconds of CPU that its engines' processes have had, without HTTP and schedulers."""
        times = (psutil.Process(server.engine).cpu_times() for server in self.servers)
        return sum(each.user + each.system for each in times)

    def close(self) -> None:
        self._stack.close()

    def start(self, command: Sequence[str], **environment: str) -> Served:
        count, free = len(self.servers), psutil.virtual_memory().available
        if count and free < MARGIN * self.memory() / count:
            raise RuntimeError(f"{free / 1e9:.1f} GB of memory are too little for engine {count + 1} beside the others")
        log = self.setting.place / f"{self.name}-{count}.log"
        running = self._stack.enter_context(served(command, log, {**on_cores(1), **environment}))
        self.servers.append(running)
        return running

    def first(self, language: int) -> float:
        """Seconds to the first token of one request."""
        url, model = self.address(language)
        server = next(each.server for each in self.servers if each.server.url == url)
        began = time.perf_counter()
        server.post(
            "/v1/completions", {"model": model, "prompt": list(self.setting.prompts[0]), "max_tokens": 1}
        ).raise_for_status()
        return time.perf_counter() - began


class Merged(System):
    """Stock vLLM on one merged checkpoint (or on `base`), which answers for all: what speed could be at most."""

    def add(self, language: int) -> Seconds:
        if self.servers:
            return {}
        if self.name == "base":
            self.start(stock(self.materials.base, *self.setting.options))
            return {}
        made = self.materials.merged(0)
        started = self.start(stock(made.path, *self.setting.options)).seconds
        return {"make": made.seconds, "start": started, "first": self.first(0)}

    def address(self, language: int) -> tuple[str, str]:
        path = self.materials.base if self.name == "base" else self.materials.merged(0).path
        return self.servers[0].server.url, str(path)

    def disk(self, languages: int) -> int:
        return size_of(self.materials.base)


class Restarted(Merged):
    """One stock engine, started again on another checkpoint for each language, after all requests for the one before.

    What its groups of requests take is measured on `merged`, and what restarts take is added: computed, then.
    """

    judged = False

    def __init__(self, name: str, setting: Setting, merged: Merged) -> None:
        super().__init__(name, setting)
        self.merged = merged
        self.servers = merged.servers

    def close(self) -> None:
        self.merged.close()

    def add(self, language: int) -> Seconds:
        self.merged.add(language)
        return {"make": self.materials.merged(language).seconds, "start": self.setting.restart, "first": 0.0}

    async def run(self, load: Load, asks: Sequence[Ask], limits: Limits, tokens: int | None = None) -> Driven:
        if load.arrival != "closed":
            raise Unsuited(f"a restart takes {self.setting.restart:.1f} s, and {limits.rate:.2f} requests come in each")
        by_language: dict[int, list[Ask]] = {}
        for ask in asks:
            by_language.setdefault(ask.language, []).append(ask)
        # All of them are measured on the first language's checkpoint, whose speed is that of any.
        groups: list[Driven] = []
        for group in by_language.values():
            groups.append(await super().run(load, group, limits, tokens))
        return grouped(groups, self.setting.restart)

    def disk(self, languages: int) -> int:
        return languages * size_of(self.materials.base)


class Engines(System):
    """A stock engine for each language, all of them running."""

    def add(self, language: int) -> Seconds:
        made = self.materials.merged(language)
        started = self.start(stock(made.path, *self.setting.options)).seconds
        return {"make": made.seconds, "start": started, "first": self.first(language)}

    def address(self, language: int) -> tuple[str, str]:
        return self.servers[language].server.url, str(self.materials.merged(language).path)

    def disk(self, languages: int) -> int:
        return languages * size_of(self.materials.base)


class Loom(System):
    """layerloom, on the family as it is or on archives of its experts under a codec."""

    def __init__(self, name: str, setting: Setting) -> None:
        super().__init__(name, setting)
        _, _, rest = name.partition("-")
        self.codec, _, residency = rest.partition("-")
        self.residency = residency or "assembled"

    def add(self, language: int) -> Seconds:
        seconds: Seconds = {}
        if not self.servers:
            family = self.materials.path
            if self.codec:
                family = self.materials.archives(self.codec, self.setting.mixed).path
            options = ("--max-loras", str(self.setting.mixed), "--residency", self.residency)
            command = layerloom(family, *options, *self.setting.pages, *self.setting.options)
            seconds["start"] = self.start(command).seconds
        if self.codec:
            seconds["make"] = self.materials.archives(self.codec, self.setting.mixed).seconds
        return seconds | {"first": self.first(language)}

    def address(self, language: int) -> tuple[str, str]:
        return self.servers[0].server.url, self.materials.name(language)

    def disk(self, languages: int) -> int:
        experts = [TASK, *self.materials.languages[:languages]]
        if not self.codec:
            return size_of(self.materials.base) + self.materials.expert_bytes(experts)
        place = self.materials.archives(self.codec, self.setting.mixed).path.parent
        return size_of(self.materials.base) + sum(size_of(place / f"{name}.safetensors") for name in experts)


class Lora(System):
    """vLLM's own multi-LoRA on the base, with an adapter extracted from each composition."""

    def __init__(self, name: str, setting: Setting) -> None:
        super().__init__(name, setting)
        self.rank = int(name.removeprefix("lora-"))

    def add(self, language: int) -> Seconds:
        seconds: Seconds = {}
        if not self.servers:
            mixed = str(self.setting.mixed)
            allowed = str(next(most for most in LORA_RANKS if most >= self.rank))
            options = ("--enable-lora", "--max-lora-rank", allowed, "--max-loras", mixed, "--max-cpu-loras", mixed)
            command = stock(self.materials.base, *options, *self.setting.options)
            seconds["start"] = self.start(command, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1").seconds
        made = self.materials.adapter(language, self.rank)
        began = time.perf_counter()
        named = {"lora_name": self.materials.name(language), "lora_path": str(made.path)}
        answer = self.servers[0].server.post("/v1/load_lora_adapter", named)
        if answer.status_code != 200:
            raise RuntimeError(f"{self.name}: {answer.status_code} {answer.text[:300]}")
        return {**seconds, "make": made.seconds, "load": time.perf_counter() - began, "first": self.first(language)}

    def address(self, language: int) -> tuple[str, str]:
        return self.servers[0].server.url, self.materials.name(language)

    def disk(self, languages: int) -> int:
        adapters = (self.materials.adapter(language, self.rank).path for language in range(languages))
        return size_of(self.materials.base) + sum(map(size_of, adapters))


def make_systems(names: Sequence[str], setting: Setting) -> list[System]:
    """Raises ValueError for a name that is none of NAMES."""
    kinds: dict[str, type[System]] = {"merged": Merged, "base": Merged, "engines": Engines}
    kinds |= {"layerloom": Loom, "lora": Lora}
    found: dict[str, System] = {}
    for name in names:
        kind = kinds.get(name.partition("-")[0])
        if name == "restarted":
            merged = found.get("merged")
            own = merged if isinstance(merged, Merged) else Merged("merged", setting)
            found[name] = Restarted(name, setting, own)
        elif kind is not None:
            found[name] = kind(name, setting)
        else:
            raise ValueError(f"{name}: there are {', '.join(NAMES)}")
    return list(found.values())

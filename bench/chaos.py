"""An operator's bad day: many clients, room for few compositions, and files that are not left alone.

    OMP_NUM_THREADS=1 python bench/chaos.py [--seconds 600] [--clients 32] [--judged 40] [--pages packed|arena]

A pico family of 5 tasks and 7 languages: 47 compositions and the base, of which the bank has room for any 6. Clients
ask for them (some much more than others), hang up in the middle, make up names and recipes. Meanwhile experts' files
are deleted, cut short and written over in place, replaced by others, and restored. What must hold, or the exit status
is 1: every answer is that of the merged checkpoint under stock vLLM (`--judged` compositions; the others are compared
with what they said at the start, alone), or it is an error that says why; the engine lives; when all is restored every
composition answers as at first; memory is flat after the first third.

Compared are the first token's logprob, and the tokens up to the first for which another was hardly less likely: sums
of other batches may be rounded otherwise.
"""

import argparse
import asyncio
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "server")]

import httpx  # noqa: E402
from pico import make_family  # noqa: E402
from serving import Server, members, serving  # noqa: E402

from layerloom.composer import Family  # noqa: E402
from shared.judge import ASKED, CLOSE, WRONG, Key, Reference, stock_answers  # noqa: E402

TASKS, LANGUAGES, ROOM = 5, 7, 6
TOKENS = 6
PROMPTS = [[3 + (17 * i + 7 * k) % 400 for i in range(6 + 3 * k)] for k in range(3)]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
ANYTHING = "model.safetensors", "could not be assembled", "all room for compositions", "not be read within"
"""What an error says that is nobody's fault here."""

Expected = dict[Key, Reference]


class Day:
    """The clients, what they found, and who damages files meanwhile."""

    def __init__(self, server: Server, root: Path, names: list[str], seed: int) -> None:
        self.server = server
        self.names = names
        self.random = random.Random(seed)
        self.expected: Expected = {}
        self.found: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.files = {file.parent.name: file for file in root.glob("*/model.safetensors") if file.parent.name != "base"}
        self.content = {name: file.read_bytes() for name, file in self.files.items()}
        # Of what the server has open, whatever becomes of the names.
        self.opened = {name: os.open(file, os.O_RDWR) for name, file in self.files.items()}
        self.memory: list[tuple[float, int]] = []

    async def ask(self, client: httpx.AsyncClient, name: str, k: int) -> httpx.Response:
        body = {"model": name, "prompt": PROMPTS[k], "max_tokens": TOKENS, **ASKED}
        return await client.post("/v1/completions", json=body)

    async def learn(self) -> None:
        """What those compositions say alone that no judge has been asked about; and what all of them say must agree."""
        async with self.client() as client:
            for name in self.names:
                for k in range(len(PROMPTS)):
                    answer = (await self.ask(client, name, k)).raise_for_status().json()["choices"][0]
                    self.check(name, k, answer)
                    self.expected.setdefault((name, k), Reference.of(answer))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.server.url, timeout=120)

    def check(self, name: str, k: int, answer: dict[str, Any]) -> None:
        if (name, k) not in self.expected:
            return
        right, tokens = self.expected[name, k], answer["token_ids"]
        first, logprob = right.steps[0], answer["logprobs"]["token_logprobs"][0]
        near = abs(logprob - first.get(tokens[0], -math.inf)) < CLOSE
        if not near or right.compare(tokens) == WRONG:
            self.wrong.append(f"{name}, prompt {k}: {logprob:.3f} {tokens}, right is {first} {right.tokens}")

    async def one_client(self, until: float) -> None:
        async with self.client() as client:
            while time.monotonic() < until:
                chance, name = self.random.random(), self.some_name()
                k = self.random.randrange(len(PROMPTS))
                try:
                    if chance < 0.08:
                        await self.hang_up(client, name, k)
                    elif chance < 0.16:
                        made_up = self.random.choice(["klingon", f"t0+l{self.random.randrange(10**6)}", "x" * 200])
                        await self.ask_and_check(client, made_up, k, 404)
                    elif chance < 0.26:
                        pair = f"t{self.random.randrange(TASKS)}+l{self.random.randrange(LANGUAGES)}"
                        await self.ask_and_check(client, f"{pair}@weight=0.{self.random.randrange(1, 10**5):05}1", k)
                    else:
                        await self.ask_and_check(client, name, k)
                except httpx.TransportError as error:
                    self.wrong.append(f"{name}: {error!r}")

    def some_name(self) -> str:
        """Zipf: the first is asked for as often as the second and third together."""
        weights = [1 / (i + 1) for i in range(len(self.names))]
        return self.random.choices(self.names, weights)[0]

    async def ask_and_check(self, client: httpx.AsyncClient, name: str, k: int, status: int = 200) -> None:
        response = await self.ask(client, name, k)
        self.found[str(response.status_code)] += 1
        if response.status_code == 200 == status:
            self.check(name, k, response.json()["choices"][0])
        elif response.status_code != status:
            message = response.json()["error"]["message"]
            if response.status_code not in (400, 503) or not any(reason in message for reason in ANYTHING):
                self.wrong.append(f"{name}: {response.status_code} {message}")
            elif response.status_code == 503 and "retry-after" not in response.headers:
                self.wrong.append(f"{name}: 503 without Retry-After")

    async def hang_up(self, client: httpx.AsyncClient, name: str, k: int) -> None:
        body = {"model": name, "prompt": PROMPTS[k], "max_tokens": 100, "ignore_eos": True, "stream": True}
        self.found["hung up"] += 1
        try:
            async with client.stream("POST", "/v1/completions", json=body, timeout=self.random.random()) as response:
                async for _ in response.aiter_lines():
                    if self.random.random() < 0.3:
                        return
        except httpx.TimeoutException:
            return

    async def damage(self, until: float) -> None:
        """At most three experts are damaged at a time."""
        hurt: list[str] = []
        while time.monotonic() < until:
            await asyncio.sleep(self.random.uniform(0.2, 1.5))
            if len(hurt) == 3 or (hurt and self.random.random() < 0.3):
                self.restore(hurt.pop(0))
            else:
                name = self.random.choice(sorted(self.files.keys() - set(hurt)))
                hurt.append(name)
                self.hurt(name)
        for name in self.files:
            self.restore(name)

    def hurt(self, name: str) -> None:
        file, other = self.files[name], self.content[self.random.choice(sorted(self.content.keys() - {name}))]
        how = self.random.choice(["delete", "cut", "empty", "write over", "write over in part", "replace", "append"])
        self.found[how] += 1
        if how == "delete":
            file.unlink(missing_ok=True)
        elif how in ("cut", "empty"):
            os.truncate(self.opened[name], len(other) // 2 if how == "cut" else 0)
        elif how == "write over":
            os.pwrite(self.opened[name], other, 0)
        elif how == "write over in part":
            os.pwrite(self.opened[name], other[-len(other) // 3 :], len(other) - len(other) // 3 - 1)
        elif how == "replace":
            new = file.with_suffix(".new")
            new.write_bytes(other)
            new.replace(file)
        else:
            os.pwrite(self.opened[name], b"more", os.fstat(self.opened[name]).st_size)

    def restore(self, name: str) -> None:
        os.truncate(self.opened[name], len(self.content[name]))
        os.pwrite(self.opened[name], self.content[name], 0)
        if not self.files[name].exists():
            self.files[name].write_bytes(self.content[name])

    async def watch(self, until: float) -> None:
        """Anonymous memory of all the server's processes."""
        while time.monotonic() < until:
            sizes = []
            for process in members(self.server.process.pid):
                status = Path(f"/proc/{process.pid}/status").read_text()
                sizes += [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
            self.memory.append((time.monotonic(), sum(sizes) // 1024))
            await asyncio.sleep(1)

    async def run(self, seconds: float, clients: int) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(
            self.damage(until - 1), self.watch(until), *(self.one_client(until) for _ in range(clients))
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--judged", type=int, default=40)
    parser.add_argument("--pages", default="packed")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerloom-chaos-") as directory:
        root = Path(directory)
        experts = {f"t{i}": "task" for i in range(TASKS)} | {f"l{i}": "language" for i in range(LANGUAGES)}
        path = make_family(root, depth=4, experts=experts, **SHAPE)
        family = Family.load(path)
        names = family.names()
        random.Random(args.seed).shuffle(names)
        judged = {
            (name, k): answer
            for name in names[: args.judged]
            for k, answer in enumerate(stock_answers(family, name, PROMPTS, TOKENS, root / "merged" / name))
        }
        options = ("--max-loras", str(ROOM), "--allow-recipes", "--pages", args.pages, "--wait-for-room", "10")
        # Room for any six; without the flag there would be that of a recipe beside it.
        model = (root / "base" / "model.safetensors").stat().st_size
        with serving(path, root / "log", *options, "--bank-memory", str(int((ROOM + 0.6) * model))) as server:
            day = Day(server, root, names, args.seed)
            day.expected = dict(judged)
            asyncio.run(day.learn())
            asyncio.run(day.run(args.seconds, args.clients))
            alive = server.healthy()
            asyncio.run(day.learn())
            log = server.tail(20)
    sizes = [size for _, size in day.memory]
    third = len(sizes) // 3
    first, last = (statistics.median(part) for part in (sizes[third : 2 * third], sizes[-third:]))
    flat = last < first * 1.03 + 8
    print(f"{len(names)} compositions, {len(judged) // len(PROMPTS)} judged by stock vLLM, {TOKENS} tokens compared")
    print(", ".join(f"{count} {what}" for what, count in sorted(day.found.items())))
    print(f"memory: {first:.0f} MB in the second third, {last:.0f} MB in the last; {len(day.wrong)} wrong answers")
    for wrong in day.wrong[:10]:
        print("WRONG", wrong)
    if not alive:
        print("the engine has ended:", log, sep="\n")
    return int(bool(day.wrong) or not alive or not flat)


if __name__ == "__main__":
    sys.exit(main())

"""reloads: an operator who changes family.yaml again and again while it is served, and breaks it every second time."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

BROKEN = "{"


@dataclass
class Reloads:
    """`count` of them: a new expert, a broken file, the expert away again, a broken file.

    Each is asked for by POST /v1/family/reload, and the server sees the file change, too.
    """

    path: Path
    url: str
    count: int
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        """Spreads them over this time."""
        first = self.path.read_text()
        more = yaml.safe_load(first)
        more["experts"]["newcomer"] = dict(next(iter(more["experts"].values())))
        texts = yaml.safe_dump(more, sort_keys=False), BROKEN, first, BROKEN
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
                for number in range(self.count):
                    await asyncio.sleep(began + seconds * (number + 0.5) / self.count - clock())
                    self._write(texts[number % 4])
                    await self._reload(client, texts[number % 4] != BROKEN)
        finally:
            self._write(first)

    def _write(self, text: str) -> None:
        other = self.path.with_suffix(".new")
        other.write_text(text)
        other.replace(self.path)

    async def _reload(self, client: httpx.AsyncClient, good: bool) -> None:
        try:
            response = await client.post("/v1/family/reload")
        except httpx.TransportError as error:
            self.wrong.append(f"a reload: {error!r}")
            return
        self.found["good" if response.status_code == 200 else "broken"] += 1
        if response.status_code != (200 if good else 400):
            self.wrong.append(f"a {'good' if good else 'broken'} reload: {response.status_code} {response.text[:300]}")

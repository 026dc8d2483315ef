"""harness: lm-eval, in the environment of its own that `make eval-tools` makes, asked about one model of a server."""

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / os.environ.get("EVAL_VENV", ".venv-eval")
TASKS = ROOT / "bench" / "tasks"
PROCESS = Path(__file__).with_name("harness_process.py")
PROGRESS = re.compile(r"\d%\|")
PATIENCE = 3600
"""Seconds for an answer: on a CPU a long one that waits for others takes minutes."""

Marks = dict[tuple[str, Any], tuple[float, float]]
"""By language and id of a question: whether the answer is right, and whether it has no number at all."""


def version() -> str | None:
    """None where lm-eval is not installed."""
    found = VENV.glob("lib/*/site-packages/lm_eval-*.dist-info") if (VENV / ".installed").exists() else []
    return next((folder.stem.split("-")[1] for folder in found), None)


@dataclass(frozen=True)
class Harness:
    """How every model is asked."""

    url: str
    """With /v1 at its end."""
    data: Path
    benchmark: str
    languages: list[str]
    prompt: str
    stops: list[str]
    limit: int | None
    max_tokens: int
    concurrent: int
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, model: str, folder: Path) -> Marks:
        """Writes every answer to answers.jsonl in `folder`. Raises RuntimeError with lm-eval's last words."""
        folder.mkdir(parents=True)
        settings, answers, log = (folder / name for name in ("settings.json", "answers.jsonl", "log"))
        settings.write_text(json.dumps(self.settings(model), indent=1), encoding="utf-8")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        environment.setdefault("OPENAI_API_KEY", "none")
        command = [VENV / "bin" / "python", PROCESS, settings, answers]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            self._running.append(process)
        if process.wait():
            raise RuntimeError(f"lm-eval about {model}: {last_words(log)}")
        lines = answers.read_text(encoding="utf-8").split("\n")
        samples = [json.loads(line) for line in lines if line]
        return {(each["doc"]["language"], each["doc"]["id"]): (each["acc"], each["no_number"]) for each in samples}

    def stop(self) -> None:
        """Ends what still asks."""
        for process in self._running:
            process.terminate()

    def settings(self, model: str) -> dict[str, Any]:
        chat = self.prompt != "text"
        return {
            "model": "local-chat-completions" if chat else "local-completions",
            "model_args": {
                "model": model,
                "base_url": f"{self.url}/{'chat/completions' if chat else 'completions'}",
                "num_concurrent": self.concurrent,
                "timeout": PATIENCE,
                "max_retries": 5,
                "tokenizer_backend": "none",
            },
            "apply_chat_template": chat,
            "tasks": [f"{self.benchmark}_{language}" for language in self.languages],
            "tasks_in": str(TASKS),
            "metadata": {"data": str(self.data), "prompt": self.prompt},
            "gen_kwargs": {"max_gen_toks": self.max_tokens, "until": self.stops},
            "limit": self.limit,
        }


def last_words(log: Path) -> str:
    """What the server refused, if it did, else the line of the exception; not how far it had come."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line and not PROGRESS.search(line)] or ["it said nothing"]
    return next((line for line in reversed(said) if "Response text:" in line), said[-1]).removesuffix(" Retrying...")

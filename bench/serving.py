"""Throughput of one composition and of four mixed, against what a user would run instead.

    python bench/serving.py [--eager] [--rounds 5] [--requests 32] [--tokens 64] [--csv out.csv]

Every engine lives in a process of its own and they take turns, round by round, so that a ratio compares
runs that stood next to each other in time; "fastest" is of the fastest run of each, with which others on the
machine had least to do. CPU time is the process's own: on a shared machine it is the steadier of the two.
OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind gives the figures of one core.

    stock      stock vLLM on the merged checkpoint of one composition, all requests
    one        layerloom, all requests for that composition
    four       layerloom, the requests spread over four compositions in one batch
    turns      four stock engines on four merged checkpoints, each with its quarter of the requests
    bound      stock vLLM with as many matrix products, of as many weights, as `four` needs (bench/shared/products.py;
               with --eager, on a CPU): `four` has to come to 0.97 of it

Also: from the first request for a composition nobody has used to its first token, next to `merge` and
starting stock vLLM on the result.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "bench"))

from shared.report import Report, spread  # noqa: E402
from shared.synthetic import SHAPE  # noqa: E402

LANGUAGES = ("swahili", "bengali", "telugu", "thai")


def prompts(count: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 500, (count, 24), generator=generator).tolist()
    return [{"prompt_token_ids": row} for row in ids]


class Engine:
    """A child process with one engine; `ask` runs one batch there and returns its seconds."""

    def __init__(self, name: str, model: str, options: argparse.Namespace) -> None:
        self.name = name
        command = [sys.executable, __file__, "--child", model, "--dtype", options.dtype]
        command += ["--eager"] if options.eager else []
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the child)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.ready = self._line()

    def _line(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.log.seek(0)
        raise SystemExit(f"{self.name} died:\n{self.log.read()[-3000:]}")

    def ask(self, models: list[str | None], count: int, tokens: int, **more: Any) -> dict[str, Any]:
        """With `several`, the groups and the layers of which each has its own, as shared.products has it."""
        job = {"models": models, "count": count, "tokens": tokens, **more}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._line()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def child(model: str, eager: bool, dtype: str) -> None:
    """The child's loop: stock vLLM for a checkpoint directory, layerloom for a family.yaml."""
    begin = time.monotonic()
    from vllm import LLM, SamplingParams

    from layerloom.server import Runtime
    from shared.products import as_several

    options = {
        "enforce_eager": eager,
        "dtype": dtype,
        "max_model_len": 512,
        "max_num_seqs": 64,
        "disable_log_stats": True,
        "enable_prefix_caching": False,
    }
    start = time.monotonic()
    runtime = Runtime(model, **options) if model.endswith(".yaml") else None
    llm = runtime.llm if runtime else LLM(model, **options)
    print(json.dumps({"start": time.monotonic() - start, "import": start - begin}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        several = nullcontext()
        if "several" in job:
            several = llm.apply_model(lambda model, asked=job["several"]: as_several(model, *asked))[0]
        params = SamplingParams(temperature=0.0, max_tokens=job["tokens"], ignore_eos=True)
        batch = prompts(job["count"])
        with several:
            start, cpu = time.monotonic(), time.process_time()
            if runtime:
                runtime.generate([job["models"][i % len(job["models"])] for i in range(len(batch))], batch, params)
            else:
                llm.generate(batch, params, use_tqdm=False)
            spent = {"seconds": time.monotonic() - start, "cpu": time.process_time() - cpu}
        print(json.dumps(spent), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eager", action="store_true", help="without torch.compile, on both sides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--options", default="", help="options of the compositions' names: preset=unreasonable")
    parser.add_argument(
        "--dtype", default="bfloat16", help="what is computed in: float32 where a CPU is slow in others"
    )
    parser.add_argument("--no-turns", action="store_true", help="leave out the four stock engines")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if options.child:
        child(options.child, options.eager, options.dtype)
        return

    from pico import make_family

    from layerloom.composer import Family, merge

    with tempfile.TemporaryDirectory() as scratch:
        experts = {"math": "task", **dict.fromkeys(LANGUAGES, "language")}
        path = make_family(Path(scratch), depth=16, experts=experts, **SHAPE)
        family = Family.load(path)
        suffix = f"@{options.options}" if options.options else ""
        names = [f"math+{language}{suffix}" for language in LANGUAGES]
        start = time.monotonic()
        stock_names = names[:1] if options.no_turns else names
        merged = [str(merge(family, name, Path(scratch) / f"merged-{name}")) for name in stock_names]
        merging = (time.monotonic() - start) / len(merged)

        stock = Engine("stock", merged[0], options)
        loom = Engine("layerloom", str(path), options)
        others = [
            Engine(f"stock {name}", model, options) for name, model in zip(stock_names[1:], merged[1:], strict=True)
        ]
        count, tokens = options.requests, options.tokens

        never_used = [loom.ask([name], 1, 1)["seconds"] for name in names]
        used = [loom.ask([name], 1, 1)["seconds"] for name in names]

        def turns() -> dict[str, float]:
            spent = [engine.ask([None], count // 4, tokens) for engine in (stock, *others)]
            return {key: sum(each[key] for each in spent) for key in spent[0]}

        layers = family.plan(names[0]).layers
        own = [i for i, blend in enumerate(layers) if blend.uniform != (("math", 1.0),)]
        rows = {
            "stock": lambda: stock.ask([None], count, tokens),
            "one": lambda: loom.ask(names[:1], count, tokens),
            "bound": lambda: stock.ask([None], count, tokens, several=[len(names), own]),
            "four": lambda: loom.ask(names, count, tokens),
            "turns": turns,
        }
        if not others:
            del rows["turns"]
        if not options.eager or torch.cuda.is_available():
            del rows["bound"]
        for run in rows.values():
            run()
        spent: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for _ in range(options.rounds):
            for name, run in rows.items():
                spent[name].append(run())

        def ratio(over: str, under: str, key: str) -> tuple[float, float, float, float]:
            pairs = [(a[key], b[key]) for a, b in zip(spent[over], spent[under], strict=True)]
            fastest = min(a for a, _ in pairs) / min(b for _, b in pairs)
            return *spread([a / b for a, b in pairs]), fastest

        sizes = {name: math.prod(info.shape) for name, info in family.base.tensors.items()}
        added = sum(sizes[name] for name in family.base.stem) + sum(sizes[n] for i in own for n in family.base.layer(i))
        how = f"{options.dtype}, {'eager' if options.eager else 'compiled'}"
        report = Report(
            options.csv,
            model=f"a random Llama of {sum(sizes.values()) / 1e6:.0f} M parameters, {family.depth} layers",
            asked=f"{count} requests, 24 + {tokens} tokens, {options.rounds} rounds, {how}",
            adds=f"{len(own)} of {family.depth} layers and the stem, {added / sum(sizes.values()):.0%} of a model",
        )
        columns = [
            f"{clock}, {of}" for clock in ("CPU time", "wall time") for of in ("median", "min", "max", "fastest")
        ]
        rows = [
            (
                name,
                count * tokens / statistics.median(run["seconds"] for run in runs),
                *ratio("stock", name, "cpu"),
                *ratio("stock", name, "seconds"),
            )
            for name, runs in spent.items()
        ]
        report.table("Speed relative to stock, round by round", ("row", "tok/s", *columns), rows)
        if others:
            against = [("four", *ratio("turns", "four", "cpu"), *ratio("turns", "four", "seconds"))]
            report.table("Speed relative to four engines taking turns", ("row", *columns), against)
        if "bound" in spent:
            report.table(
                "Four in one batch next to what stock's matrix products allow, round by round",
                ("row", *columns),
                [("four", *ratio("bound", "four", "cpu"), *ratio("bound", "four", "seconds"))],
            )
        first, again = (statistics.median(times) for times in (never_used, used))
        start = stock.ready["import"] + stock.ready["start"]
        report.table(
            "From a request for a composition to its first token, seconds",
            ("never used before", "once more", "merge", "starting stock vLLM on that"),
            [(first, again, merging, start)],
        )
        for engine in (stock, loom, *others):
            engine.close()


if __name__ == "__main__":
    main()

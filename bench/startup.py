"""Start-up time of `layerloom serve` next to stock vLLM's server on the base: from the command to /health.

    python bench/startup.py [FAMILY] [--rounds 3] [--compiled]

The two start alternately, each alone, with the same options; eager unless --compiled.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

PORT = 8077
OPTIONS = ["--port", str(PORT), "--kv-cache-memory-bytes", "1G"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def seconds_to_health(command: list[str]) -> float:
    start = time.monotonic()
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{PORT}/health", timeout=2).status_code == 200:
                    return time.monotonic() - start
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", type=Path, default=Path("demo"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    options = OPTIONS if given.compiled else [*OPTIONS, "--enforce-eager"]
    layerloom = [str(Path(sys.executable).with_name("layerloom")), "serve", str(given.family), *options]
    server = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(given.family / "base"),
        *options,
    ]
    ours, theirs = [], []
    for _ in range(given.rounds):
        theirs.append(seconds_to_health(server))
        ours.append(seconds_to_health(layerloom))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"stock {statistics.median(theirs):.1f} s, layerloom {statistics.median(ours):.1f} s, ", end="")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}), {given.rounds} rounds")


if __name__ == "__main__":
    main()

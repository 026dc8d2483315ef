"""ready: what a server says to who has started it, when it is up."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from starlette.datastructures import State

from .interrupts import end_all
from .leases import Leases
from .quiet import FOLDER

LOOK = 0.05


async def announce(state: State, leases: Leases, index: int, servers: int) -> None:
    """Waits until the server answers, and then says so in the folder of its start, if there is one."""
    folder = Path(os.environ.get(FOLDER, ""))
    if not os.environ.get(FOLDER):
        return
    while not getattr(getattr(state, "server", None), "started", False):
        await asyncio.sleep(LOOK)
    if servers == 1:
        take_interrupts(leases.client)
    (report, *others) = await leases.tell("report_compositions")
    said = {
        "index": index,
        "servers": servers,
        "workers": 1 + len(others),
        "budget": report["budget"],
        "resident": len(report["compositions"]),
    }
    file = folder / f"ready-{os.getpid()}.json"
    try:
        file.with_suffix(".part").write_text(json.dumps(said))
        file.with_suffix(".part").rename(file)
    except FileNotFoundError:
        # It is another server's that has started this one as a part of itself.
        pass


def take_interrupts(client: Any) -> None:
    """Ctrl-C ends this server as SIGTERM does, after its requests; a second one at once."""
    loop = asyncio.get_running_loop()
    pressed = 0

    def interrupted() -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            end_all()
        running = client.output_processor.get_num_unfinished_requests()
        patience = client.vllm_config.shutdown_timeout
        waits = f" after {running} requests, within {patience} s" if running and patience else ""
        print(f"\nstopping{waits}; Ctrl-C again ends it at once", flush=True, file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_signal_handler(signal.SIGINT, interrupted)

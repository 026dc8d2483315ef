"""bench/chaos.py for a short while: many clients, room for few compositions, and files that are not left alone."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "bench" / "chaos.py"


@pytest.mark.timeout(900)
def test_every_answer_is_right_or_says_why(capfd: Any) -> None:
    command = [sys.executable, str(SCRIPT), "--seconds", "30", "--judged", "4", "--pages", "arena"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary = done.stdout.splitlines()[-3:]
    with capfd.disabled():
        print("", *summary, sep="\n")
    assert "0 wrong answers" in summary[-1] and " 200" in summary[1]

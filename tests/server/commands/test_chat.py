"""layerloom chat: over a server that runs, on a terminal and from a file, and with an engine of its own."""

import subprocess
from pathlib import Path

from serving import COMMAND, ENVIRONMENT, KEY, Server, wait_until
from terminal import CONTROL_C, CONTROL_D, ordinary, terminal

DEMO = Path(__file__).resolve().parents[3] / "demo"
ASHA = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"
LINES = (ASHA, "/model math+bengali", "/reset", ASHA, "/model bengal", "/nothing", "/model math+auto", "/reset", ASHA)


def chat(*words: object, lines: tuple[str, ...] = LINES) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "chat", *map(str, words)]
    text = "".join(f"{line}\n" for line in (*lines, "/quit", "is not read"))
    env = {**ordinary(), **ENVIRONMENT}
    env.pop("VLLM_LOGGING_LEVEL")
    return subprocess.run(command, input=text, capture_output=True, text=True, env=env, timeout=300)


def test_answers_go_to_the_output_and_the_rest_beside_it(demo: Server) -> None:
    done = chat("--url", demo.url, "--api-key", KEY, "--model", "Math + Swahili", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    first, other, again = done.stdout.split()
    assert (first, again) == ("8", "8") and other != "8"
    assert done.stderr.splitlines() == [
        "math+bengali answers",
        "a new conversation",
        "error: there is no model 'bengal'. Did you mean 'bengali'? Valid: base, math, swahili, bengali, math+swahili, "
        "math+bengali, tutor",
        "there is no /nothing. /help says what there is",
        "math+auto answers",
        "a new conversation",
    ]


def test_a_terminal(demo: Server) -> None:
    with terminal("chat", "--url", f"{demo.url}/v1", OPENAI_API_KEY=KEY) as shown:
        shown.wait_for("math+swahili> ", 60)
        shown.type(f"{ASHA}\n")
        shown.wait_for("8\nmath+swahili> ", 60)
        shown.type("/model math+au\t\n")
        shown.wait_for("math+auto answers", 60)
        shown.type("/reset\n")
        shown.type(f"{ASHA}\n")
        shown.wait_for("(math+swahili)\n8\nmath+auto> ", 60)
        shown.type(f"half a line{CONTROL_C}")
        shown.wait_for("(Ctrl-D ends)\nmath+auto> ", 60)
        shown.type(CONTROL_D)
        assert shown.wait(30) == 0


def test_an_answer_that_is_stopped(pico: Server) -> None:
    """It stays as far as it came, and the conversation goes on."""
    with terminal("chat", "--url", pico.url, "--model", "math") as shown:
        shown.wait_for("math> ", 60)
        for _ in range(2):
            before = len(shown.text)
            shown.type("bada dede\n")
            wait_until(lambda before=before: shown.read() and len(shown.text) > before + 100, 60)
            shown.type(CONTROL_C)
            shown.wait_for("(stopped)\nmath> ", 60)
        shown.type("/quit\n")
        assert shown.wait(30) == 0
    wait_until(lambda: pico.metric("vllm:num_requests_running") == 0, 30)


def test_what_a_server_refuses(demo: Server) -> None:
    done = chat("--url", demo.url, "--api-key", "wrong")
    assert done.returncode == 2 and "--api-key, or in OPENAI_API_KEY" in done.stderr
    done = chat("--url", demo.url, "--api-key", KEY, lines=(f"{ASHA} " * 40, "/reset", ASHA))
    assert done.returncode == 0 and done.stdout == "8\n"
    assert "maximum context length" in done.stderr


def test_an_engine_of_its_own() -> None:
    done = chat(DEMO, "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert [done.stdout.split()[index] for index in (0, 2)] == ["8", "8"]
    steps = [line for line in done.stderr.splitlines() if line[:2].isdigit()]
    assert any(line.endswith("loading the base") for line in steps)
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr

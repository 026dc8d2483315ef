"""The runtime that products embed: many threads, chat, its end, and README's snippet as a script."""

import _thread
import asyncio
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from threading import Timer
from threading import enumerate as enumerate_threads

import pytest
from engines import ENVIRONMENT, answers, distance, sampling, settings

from layerloom.composer import ComposeError, Family, UnknownName, merge

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "demo"
NAMES = ["math+swahili", "math+bengali", "swahili", "base"]
QUESTIONS = [f"Asha ana ndizi {n}. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?" for n in (2, 4, 5)]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]
LONG = {"max_tokens": 200, "ignore_eos": True}

pytestmark = pytest.mark.usefixtures("engine_environment")


@pytest.fixture(scope="module")
def stock(tmp_path_factory, engine_environment):
    """What stock vLLM on the merged checkpoint answers to each of CHATS."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    merged = merge(Family.load(DEMO), "math+swahili", tmp_path_factory.mktemp("merged") / "model")
    llm = LLM(str(merged), **settings({}))
    outputs = answers(llm.chat(CHATS, scored(), use_tqdm=False))
    del llm
    cleanup_dist_env_and_memory()
    return outputs


@pytest.fixture(scope="module")
def runtime(stock):
    from layerloom.server import Runtime

    with Runtime(DEMO, **settings({})) as runtime:
        yield runtime


def scored():
    return sampling(16, prompt_logprobs=0)


def apart(found, expected):
    """The largest logprob difference, over the prompts and then the tokens up to the first that differs."""
    prompts = zip(found, expected, strict=True)
    return max(
        *(abs(x - y) for ours, theirs in prompts for x, y in zip(ours.prompt, theirs.prompt, strict=True)),
        distance(found, expected),
    )


@pytest.fixture(scope="module")
def expected(runtime):
    """The answers of each of NAMES when nobody else asks."""
    alone = {name: answers(runtime.generate(name, QUESTIONS, scored())) for name in NAMES}
    assert min(apart(alone[a], alone[b]) for a, b in combinations(NAMES, 2)) > 0.5, "or the tests show nothing"
    return alone


def is_near(outputs, expected):
    # On some CPUs a product of other rows is rounded otherwise, in stock vLLM too.
    return apart(answers(outputs), expected) < 0.05


def at_once(runtime, expected, *others):
    """Each of NAMES asks its questions from a thread of its own, next to `others`, whose futures are returned."""
    with ThreadPoolExecutor(len(NAMES) + len(others)) as pool:
        asked = {name: pool.submit(runtime.generate, name, QUESTIONS, scored()) for name in NAMES}
        beside = [pool.submit(other) for other in others]
        for name, future in asked.items():
            assert is_near(future.result(60), expected[name])
    assert runtime.llm.llm_engine.get_num_unfinished_requests() == 0
    return beside


def test_threads(runtime, expected):
    at_once(runtime, expected)


def test_threads_share_a_batch(runtime):
    """Who asks for little does not wait for who asks for much."""
    with ThreadPoolExecutor(1) as pool:
        much = pool.submit(runtime.generate, "math", QUESTIONS * 30, **LONG)
        runtime.generate("swahili", QUESTIONS[0], max_tokens=2)
        assert not much.done()
        assert [len(output.outputs[0].token_ids) for output in much.result(60)] == [200] * 90


def test_coroutines(runtime, expected):
    async def ask():
        calls = (asyncio.to_thread(runtime.generate, name, QUESTIONS, scored()) for name in NAMES)
        return await asyncio.wait_for(asyncio.gather(*calls), 60)

    for name, outputs in zip(NAMES, asyncio.run(ask()), strict=True):
        assert is_near(outputs, expected[name])


def test_an_error_reaches_only_who_made_it(runtime, expected):
    unknown, long = at_once(
        runtime,
        expected,
        lambda: runtime.generate("maths", QUESTIONS),
        # By then the first of the two is in the engine.
        lambda: runtime.generate("math", [QUESTIONS[0], QUESTIONS[0] * 40], max_tokens=4),
    )
    assert isinstance(unknown.exception(), UnknownName)
    assert "maximum" in str(long.exception())


def test_an_interrupt_leaves_nothing_behind(runtime, expected):
    # A shell has what it runs in the background ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    Timer(0.3, _thread.interrupt_main).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runtime.generate("math", QUESTIONS * 60, **LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    at_once(runtime, expected)


def test_several_answers_to_a_prompt(runtime):
    outputs = runtime.generate("math", QUESTIONS, n=2, temperature=1.0, seed=1, max_tokens=8)
    assert [len(output.outputs) for output in outputs] == [2] * len(QUESTIONS)
    assert [output.prompt for output in outputs] == QUESTIONS
    assert runtime.generate("math", []) == []


def test_chat_is_that_of_stock_vllm_on_the_merged_checkpoint(runtime, stock):
    assert answers(runtime.chat("math+swahili", CHATS, scored())) == stock
    assert is_near(runtime.chat("math+swahili", CHATS[0], scored()), stock[:1])
    assert not is_near(runtime.chat("base", CHATS, scored()), stock), "or the test shows nothing"


def test_chat_with_several_models(runtime):
    answers = runtime.chat(["math+sw", "math", "swahili"], [CHATS[2]] * 3, max_tokens=8)
    assert [answer.outputs[0].text for answer in answers] == ["8", "Asha", "4"]
    with pytest.raises(ValueError, match="2 models for 1 conversations"):
        runtime.chat(["math", "swahili"], CHATS[0])
    with pytest.raises(UnknownName, match="maths"):
        runtime.chat("maths", CHATS)


def test_chat_takes_options_of_the_template(runtime):
    plain = runtime.chat("math+swahili", CHATS[2], max_tokens=8)
    open_ended = runtime.chat("math+swahili", CHATS[2], max_tokens=8, template={"add_generation_prompt": False})
    assert plain[0].prompt_token_ids[:-1] == open_ended[0].prompt_token_ids


def test_a_second_runtime_is_refused_while_the_first_is_open(runtime, expected):
    from layerloom.server import Runtime

    with pytest.raises(ComposeError, match=r"has a runtime already.*VLLM_ENABLE_V1_MULTIPROCESSING=1"):
        Runtime(DEMO, **settings({}))
    at_once(runtime, expected)


def test_one_runtime_after_another(runtime, expected):
    """Last, as it closes the runtime of the tests above."""
    from layerloom.server import Runtime

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runtime.generate, "math", QUESTIONS * 60, **LONG)
        runtime.generate("swahili", QUESTIONS[0], max_tokens=2)
        runtime.close()
        assert "closed" in str(running.exception(10))
    runtime.close()
    assert not [thread for thread in enumerate_threads() if thread.name == "layerloom-engine"]
    for call in (runtime.generate, runtime.chat):
        with pytest.raises(RuntimeError, match=r"has ended \(it was closed\): make another"):
            call("math", QUESTIONS)
    # With room for two compositions, four callers take turns.
    with Runtime(DEMO, **settings({"max_loras": 2, "max_cpu_loras": 2})) as second:
        at_once(second, expected)
        everything = second.generate(NAMES * 3, [question for question in QUESTIONS for _ in NAMES], scored())
        for index, name in enumerate(NAMES):
            assert is_near(everything[index :: len(NAMES)], expected[name])


def script(path, code, **environment):
    """Its exit status, what it printed itself, and what it said of errors."""
    path.write_text(code)
    variables = {**os.environ, **ENVIRONMENT, **environment}
    done = subprocess.run([sys.executable, path], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def snippet():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return code


SPAWNED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


def test_the_snippet_of_the_readme(tmp_path, snippet):
    status, printed, said = script(tmp_path / "snippet.py", snippet)
    assert status == 0, said[-2000:]
    assert printed == "8\n"


def test_a_script_that_the_engines_processes_import_again(tmp_path, snippet):
    status, printed, said = script(tmp_path / "snippet.py", snippet, **SPAWNED)
    assert status == 1 and not printed
    # vLLM's own word, in every process, where Triton has no backend for CPUs.
    lines = [line for line in said.splitlines() if not line.startswith("Triton is installed")]
    assert len(lines) == 1 and 'under if __name__ == "__main__":' in lines[0]


KILLED = """
import signal
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
import psutil
from layerloom.server import Runtime

QUESTION = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"

OPTIONS = {"kv_cache_memory_bytes": 2**26, "enforce_eager": True, "max_num_seqs": 4}

def killed(runtime, first=None):
    engine = [child for child in psutil.Process().children() if "VLLM::" in " ".join(child.cmdline())][-1]
    if first is not None:
        engine.send_signal(first)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(runtime.generate, "math", [QUESTION] * 50, max_tokens=200, ignore_eos=True)
                 for _ in range(4)]
        sleep(0.5)
        begin = monotonic()
        engine.kill()
        print([type(future.exception()).__name__ for future in asked], monotonic() - begin < 10)
    for call in (runtime.generate, runtime.chat):
        try:
            call("math", QUESTION)
        except RuntimeError as error:
            print(error)

def main():
    with Runtime("demo", **OPTIONS) as runtime:
        print(runtime.generate("math+swahili", QUESTION + "\\n", max_tokens=4)[0].outputs[0].text)
        killed(runtime)
    # It answers nothing: not even that a composition is in memory, after which requests would run.
    with Runtime("demo", **OPTIONS) as runtime:
        killed(runtime, signal.SIGSTOP)

def of_two():
    with Runtime("demo", tensor_parallel_size=2, **OPTIONS) as runtime:
        killed(runtime, signal.SIGSTOP)

if __name__ == "__main__":
    WHAT()
"""


def test_an_engine_that_is_killed(tmp_path):
    status, printed, said = script(tmp_path / "killed.py", KILLED.replace("WHAT", "main"), **SPAWNED)
    assert status == 0, said[-2000:]
    answer, *rest = printed.splitlines()
    assert answer == "8" and len(rest) == 6
    for lines in (rest[:3], rest[3:]):
        assert has_died(lines)


def test_a_worker_of_two_that_is_killed(tmp_path):
    status, printed, said = script(tmp_path / "killed.py", KILLED.replace("WHAT", "of_two"))
    assert status == 0, said[-2000:]
    assert has_died(printed.splitlines())


def has_died(said: list[str]) -> bool:
    """Whether four callers were told, and the two after them."""
    errors, *after = said
    told = [line.startswith("this runtime has ended (EngineCore") and line.endswith("make another") for line in after]
    return errors == f"{['EngineDeadError'] * 4} True" and told == [True, True]

"""The runtime for asyncio programs: streams of more compositions than fit, their end, and the engine's."""

import asyncio
import shutil
import time
from contextlib import aclosing, suppress
from pathlib import Path

import psutil
import pytest
from engines import settings

from layerloom.composer import ComposeError, UnknownName
from layerloom.server.options import lora_request

DEMO = Path(__file__).resolve().parents[3] / "demo"
NAMES = ["base", "math", "swahili", "bengali", "math+swahili", "math+bengali", "tutor"]
QUESTION = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"
BENGALI = "আশার 5টি কলা আছে। সে আরও 3টি কেনে। এখন তার কাছে কয়টি কলা আছে?"
LONG = {"max_tokens": 200, "ignore_eos": True}
ROOM = {"max_loras": 2, "max_cpu_loras": 2}

pytestmark = pytest.mark.usefixtures("engine_environment")


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def expected(engine_environment):
    """By name, the tokens of a chat and of a continuation, as Runtime says them one by one."""
    from layerloom.server import Runtime

    with Runtime(DEMO, **settings({})) as runtime:
        chats = {name: runtime.chat(name, user(QUESTION), max_tokens=8) for name in NAMES}
        prompts = {name: runtime.generate(name, QUESTION, max_tokens=24) for name in NAMES}
    return {name: [list(found[name][0].outputs[0].token_ids) for found in (chats, prompts)] for name in NAMES}


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return shutil.copytree(DEMO, tmp_path_factory.mktemp("family") / "demo")


@pytest.fixture(scope="module")
def runtime(loop, family, expected):
    """Room for two compositions."""
    from layerloom.server import AsyncRuntime

    runtime = AsyncRuntime(family, preload=["tutor"], **settings(ROOM))
    with pytest.raises(RuntimeError, match="has not been entered"):
        runtime.chat("math", user(QUESTION))
    loop.run(runtime.__aenter__())
    yield runtime
    loop.run(runtime.close())


def children():
    return [child for child in psutil.Process().children() if "EngineCore" in " ".join(child.cmdline())]


async def read(stream):
    return [part async for part in stream]


async def begun(stream):
    """A stream that has said something."""
    await anext(stream)
    return stream


async def resident(runtime):
    return {shown["name"] for shown in (await runtime.engine.collective_rpc("report_compositions"))[0]["compositions"]}


async def let_go(runtime, name):
    """Waits until nobody holds a composition, which then can be evicted."""
    request = lora_request(runtime.family.plan(name))
    async with asyncio.timeout(10):
        while name in await resident(runtime):
            await runtime.engine.collective_rpc("evict_composition", args=(request.lora_path, request.lora_int_id))
            await asyncio.sleep(0.05)


def test_it_says_what_runtime_says(loop, runtime, expected):
    async def ask(name):
        answers = runtime.answer(name, user(QUESTION), max_tokens=8), runtime.complete(name, QUESTION, max_tokens=24)
        return [(await answer).token_ids for answer in answers]

    for name in NAMES:
        assert loop.run(ask(name)) == expected[name]


def test_the_parts_of_a_stream_are_the_answer(loop, runtime, expected):
    parts = loop.run(read(runtime.generate("math+sw", QUESTION, max_tokens=24)))
    assert [token for part in parts for token in part.token_ids] == expected["math+swahili"][1]
    whole = loop.run(runtime.complete("math+swahili", QUESTION, max_tokens=24))
    assert "".join(part.text for part in parts) == whole.text
    assert {part.model for part in parts} == {whole.model} == {"math+swahili"}
    assert [part.finish_reason for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].finish_reason == whole.finish_reason


def test_many_streams_of_more_compositions_than_fit(loop, runtime, expected):
    async def ask():
        streams = [read(runtime.chat(name, user(QUESTION), max_tokens=8)) for name in NAMES * 20]
        return await asyncio.wait_for(asyncio.gather(*streams), 60)

    for name, parts in zip(NAMES * 20, loop.run(ask()), strict=True):
        assert [token for part in parts for token in part.token_ids] == expected[name][0]


def test_each_conversation_finds_its_language(loop, runtime):
    async def ask():
        texts = [QUESTION, BENGALI, "How many bananas does Asha have now?"]
        answers = [await runtime.answer("math+auto", user(text), max_tokens=4) for text in texts]
        ids = runtime.engine.get_tokenizer().encode(QUESTION)
        answers += [await runtime.complete("math+auto", prompt, max_tokens=4) for prompt in (BENGALI, ids)]
        return [answer.model for answer in answers]

    assert loop.run(ask()) == ["math+swahili", "math+bengali", "math", "math+bengali", "math+swahili"]


def test_what_is_wrong_reaches_only_who_asked(loop, runtime, expected):
    async def ask():
        wrong = [
            runtime.answer("maths", user(QUESTION)),
            runtime.answer("math", user(QUESTION * 40)),
            runtime.answer("math", user(QUESTION), template={"chat_templates": ""}),
            runtime.complete("math", QUESTION, structured_outputs={"json": {"type": "object"}}),
        ]
        right = [runtime.answer(name, user(QUESTION), max_tokens=8) for name in NAMES]
        return await asyncio.gather(*wrong, *right, return_exceptions=True)

    unknown, long, option, form, *answers = loop.run(ask())
    assert isinstance(unknown, UnknownName)
    assert isinstance(long, ValueError) and "maximum context length" in str(long) and "parameter" not in str(long)
    assert isinstance(option, TypeError) and "chat_templates" in str(option)
    assert isinstance(form, ComposeError) and "structured_outputs" in str(form)
    assert [answer.token_ids for answer in answers] == [expected[name][0] for name in NAMES]


def test_leaving_a_stream_ends_its_request(loop, runtime):
    async def leave():
        async for _ in runtime.chat("math", user(QUESTION), **LONG):
            break

    async def close():
        async with aclosing(runtime.generate("swahili", QUESTION, **LONG)) as stream:
            await begun(stream)

    async def cancel():
        task = asyncio.create_task(read(runtime.generate("bengali", QUESTION, **LONG)))
        await asyncio.sleep(0.1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def check():
        for end, name in ((leave, "math"), (close, "swahili"), (cancel, "bengali")):
            await end()
            await asyncio.sleep(0)
            await asyncio.wait_for(let_go(runtime, name), 5)
            assert runtime.engine.output_processor.get_num_unfinished_requests() == 0

    loop.run(check())


def test_what_runs_is_held(loop, runtime):
    async def check():
        for _ in range(5):
            stream = await begun(runtime.generate("math", QUESTION, **LONG))
            request = lora_request(runtime.family.plan("math"))
            await runtime.engine.collective_rpc("evict_composition", args=(request.lora_path, request.lora_int_id))
            if runtime.engine.output_processor.get_num_unfinished_requests():
                assert "math" in await resident(runtime)
            assert sum(len(part.token_ids) for part in await read(stream)) > 100
        await let_go(runtime, "math")

    loop.run(check())


def test_who_reads_slowly_holds_up_nobody(loop, runtime):
    async def check():
        slow = await begun(runtime.generate("math", QUESTION, **LONG))
        answers = [runtime.complete("swahili", QUESTION, **LONG) for _ in range(8)]
        assert {len(answer.token_ids) for answer in await asyncio.gather(*answers)} == {200}
        return await read(slow)

    rest = loop.run(check())
    assert sum(len(part.token_ids) for part in rest) > 100
    assert len(rest) <= 3


def test_structured_output(loop, runtime):
    ask = runtime.answer
    number = loop.run(ask("math+swahili", user(QUESTION), structured_outputs={"json": {"type": "integer"}}))
    assert int(number.text) == 8
    choice = loop.run(ask("math+swahili", user(QUESTION), structured_outputs={"choice": ["4", "7"]}))
    assert choice.text in ("4", "7")


def test_several_answers_to_a_prompt(loop, runtime):
    several = {"n": 2, "temperature": 1.0, "seed": 1, "max_tokens": 4}
    whole = loop.run(runtime.complete("math", QUESTION, **several))
    parts = loop.run(read(runtime.generate("math", QUESTION, **several)))
    for index, one in enumerate(whole.output.outputs):
        assert "".join(part.text for part in parts if part.index == index) == one.text


def test_the_family_may_change(loop, runtime, family):
    file = family / "family.yaml"
    before = file.read_text()
    with pytest.raises(UnknownName):
        runtime.chat("helper", user(QUESTION))
    file.write_text(before.replace("  tutor:", "  helper: math+bengali\n  tutor:"))
    assert loop.run(runtime.reload())
    assert loop.run(runtime.answer("helper", user(BENGALI), max_tokens=4)).model == "helper"
    file.write_text("base: nowhere")
    with pytest.raises(ComposeError, match="the family stays as it was"):
        loop.run(runtime.reload())
    assert "helper" in runtime.family.names()


def test_an_engine_that_is_killed(loop, runtime):
    """Last, as the tests above need it."""

    async def check():
        streams = [await begun(runtime.chat(name, user(QUESTION), **LONG)) for name in ("math", "base")]
        waiting = [runtime.answer(name, user(QUESTION), **LONG) for name in NAMES * 10]
        asked = asyncio.gather(*map(read, streams), *waiting, return_exceptions=True)
        await asyncio.sleep(0)
        (engine,) = children()
        engine.kill()
        return await asyncio.wait_for(asked, 10)

    began = time.monotonic()
    errors = [outcome for outcome in loop.run(check()) if isinstance(outcome, BaseException)]
    assert len(errors) > 60 and {type(error) for error in errors} == {RuntimeError}
    for call in (lambda: runtime.chat("math", user(QUESTION)), lambda: loop.run(runtime.complete("math", QUESTION))):
        with pytest.raises(RuntimeError, match=r"has ended \(its engine has died\): make another"):
            call()
    loop.run(runtime.close())
    assert time.monotonic() - began < 20
    assert not children()
    with pytest.raises(RuntimeError, match=r"has ended \(it was closed\): make another"):
        runtime.chat("math", user(QUESTION))


def test_what_does_not_fit_is_said_at_once(loop):
    from layerloom.server import AsyncRuntime

    for options, reason in (({"quantization": "fp8"}, "leave it out"), ({"preload": ["maths"]}, "maths")):
        with pytest.raises(ComposeError, match=reason):
            loop.run(AsyncRuntime(DEMO, **options).__aenter__())

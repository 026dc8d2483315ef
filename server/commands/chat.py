"""chat: a conversation in the terminal, in which compositions take turns."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from .completing import names_of_family
from .console import need_vllm, say, show
from .failures import Told
from .progress import load_family

HELP = """\
/model NAME   who answers from now on, as in /model math+bengali; the conversation goes on
/models       who there is
/reset        begin a new conversation
/quit         end, as Ctrl-D does; Ctrl-C stops an answer"""


def chat(
    family: Annotated[
        Path | None,
        typer.Argument(metavar="FAMILY", help="family.yaml, or the directory that holds it; not needed with --url"),
    ] = None,
    model: Annotated[
        str, typer.Option(help="who answers; by default the first pair", autocompletion=names_of_family)
    ] = "",
    url: Annotated[
        str, typer.Option(help="of a server that runs, as in http://localhost:8000; else an engine is started")
    ] = "",
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="the server's, if it asks for one")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="of an answer; by default as many as fit")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 takes the likeliest word; by default as the server has it, or 0")
    ] = None,
) -> None:
    """Talk to a family in the terminal.

    As in: layerloom chat demo, or layerloom chat --url http://localhost:8000. /help says what can be typed besides what
    is asked. Standard input may be a file: then answers, and nothing else, go to standard output.
    """
    from .talking import Engine, Server, Wishes

    wishes = Wishes(max_tokens, temperature)
    if not url and family is None:
        raise typer.BadParameter("give a FAMILY, or the --url of a server that runs")
    with asyncio.Runner() as runner:
        talker: Any
        if url:
            talker = Server(url, api_key, wishes)
        else:
            assert family is not None
            talker = started(runner, family, lambda: Engine.start(family, wishes))
        try:
            Chat(runner, talker, model).go_on()
        finally:
            runner.run(talker.close())


def started(runner: asyncio.Runner, family: Path, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """An engine of this process' own."""
    need_vllm()
    load_family(family)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    from layerloom.server.http.interrupts import end_at_once
    from layerloom.server.http.startup import Startup, wants_log

    with Startup(wants_log(())) as startup:
        end_at_once(startup.stop)
        startup.step("starting the engine")
        startup.follow()
        found = runner.run(start())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        startup.stop()
    return found


class Chat:
    """One conversation, and who answers."""

    def __init__(self, runner: asyncio.Runner, talker: Any, model: str) -> None:
        self.runner = runner
        self.talker = talker
        self.messages: list[dict[str, str]] = []
        self.typed = sys.stdin.isatty()
        self.names: list[str] = runner.run(talker.models())
        first = next((name for name in self.names if "+" in name), self.names[0])
        self.model = runner.run(talker.name_of(model)) if model else first

    def go_on(self) -> None:
        """Until there is nothing more to read, or /quit."""
        if self.typed:
            self.complete()
            show(f"{self.model} answers. /models shows who else there is, /help what can be typed.")
        while (line := self.read()) is not None:
            if line.startswith("/"):
                if not self.obey(line):
                    return
            elif line:
                self.ask(line)

    def read(self) -> str | None:
        """A line; None at the end."""
        while True:
            try:
                return input(f"{self.model}> " if self.typed else "").strip()
            except EOFError:
                if self.typed:
                    show("")
                return None
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                show("\n(Ctrl-D ends)")

    def obey(self, line: str) -> bool:
        """False when it is the end."""
        word, _, rest = line.partition(" ")
        if word in ("/quit", "/exit"):
            return False
        if word == "/help":
            show(HELP)
        elif word == "/reset":
            self.messages.clear()
            say("a new conversation")
        elif word == "/models" or (word == "/model" and not rest):
            self.names = self.runner.run(self.talker.models())
            show("\n".join(f"{'*' if name == self.model else ' '} {name}" for name in self.names))
        elif word == "/model":
            with telling():
                self.model = self.runner.run(self.talker.name_of(rest.strip()))
                say(f"{self.model} answers")
        else:
            say(f"there is no {word}. /help says what there is")
        return True

    def ask(self, text: str) -> None:
        """Shows the answer as it comes. What is stopped stays as far as it came; what fails has not been said."""
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            with telling():
                self.runner.run(self.listen(said))
        except KeyboardInterrupt:
            if not self.typed:
                raise
            say(" (stopped)")
        if said:
            self.messages.append({"role": "assistant", "content": "".join(said)})
        else:
            self.messages.pop()

    async def listen(self, said: list[str]) -> None:
        async for piece in self.talker.answer(self.model, self.messages):
            if not said and piece.text and piece.model != self.model and self.typed:
                say(f"({piece.model})")
            said += [piece.text] if piece.text else []
            sys.stdout.write(shown(piece.text))
            sys.stdout.flush()
        sys.stdout.write("\n")

    def complete(self) -> None:
        """Has Tab complete names and commands, where there is a way to."""
        with suppress(ImportError):
            import readline

            words = ["/model ", "/models", "/reset", "/help", "/quit"]

            def match(start: str, index: int) -> str | None:
                line = readline.get_line_buffer()
                given = self.names if line.startswith("/model ") else words if line.startswith("/") else []
                return next(iter([word for word in given if word.startswith(start)][index:]), None)

            readline.set_completer_delims(" ")
            readline.set_completer(match)
            readline.parse_and_bind("tab: complete")


class telling:
    """Says what is wrong, and goes on."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, at: Any) -> bool:
        if isinstance(error, Told):
            say(str(error), "error")
            return True
        return False


def shown(text: str) -> str:
    """Without what would move a terminal's cursor, or change its colours."""
    return "".join(letter for letter in text if letter in "\n\t" or letter.isprintable() or ord(letter) > 0x9F)

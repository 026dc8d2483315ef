"""group: the command as a whole: what all its commands take, and where their errors end."""

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from layerloom.server.http.quiet import say_nothing_at_the_end

from .console import compose_warnings, say
from .failures import INTERRUPTED, UNREAD, told

DEBUG = "--debug"


class Commands(TyperGroup):
    """Takes --debug before and after a command's name, and ends every error of any command in one line."""

    debug = False

    def main(self, args: Any = None, **options: Any) -> Any:
        if args is None:
            say_nothing_at_the_end()
        return super().main(args, **options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ours = args[: args.index("--")] if "--" in args else args
        self.debug = DEBUG in ours or os.environ.get("LAYERLOOM_DEBUG", "0") not in ("", "0")
        return super().parse_args(ctx, [word for word in ours if word != DEBUG] + args[len(ours) :])

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for param in params:
            param.hidden = param.hidden or param.name == "show_completion"
        return params

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        # Without a blank line, all fits a terminal of 24.
        formatter.write(f"  {self.help}\n")

    def invoke(self, ctx: Any) -> Any:
        try:
            with compose_warnings():
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Python would try once more at its end, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(UNREAD) from None
        except Exception as error:
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise  # Typer's own
            if self.debug:
                traceback.print_exc()
            message, status = told(error)
            say(message, "error")
            raise typer.Exit(status) from error

"""app: the `layerloom` command."""

import typer

from . import compositions, engines, experts, imports

app = typer.Typer(
    help="Serve many layer-swapped language models from one copy of the base.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(engines.serve)
for command in (
    engines.generate,
    compositions.merge,
    compositions.verify,
    compositions.plan,
    experts.extract,
    experts.inspect,
    experts.suggest,
    imports.import_mergekit,
    imports.convert,
):
    app.command()(command)

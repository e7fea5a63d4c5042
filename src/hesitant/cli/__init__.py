"""The `hesitant` command, one file a subcommand.

What is heavy (torch, matplotlib, scikit-learn) is imported inside the commands: `--help` answers at once. For the same
reason the demos are imported from their files and not from their room.
"""

import sys
from importlib import metadata
from typing import Annotated

try:
    import typer

    from hesitant.cli.demo import demo
    from hesitant.cli.evaluate import EVALUATE_HELP, evaluate
except ModuleNotFoundError as error:
    sys.exit(f"The hesitant command needs {error.name}, which is not installed: pip install 'hesitant[cli]'")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Makes deep classifiers know when they do not know.",
)
app.add_typer(demo, name="demo")
app.command("evaluate", help=EVALUATE_HELP)(evaluate)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hesitant {metadata.version('hesitant')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Makes deep classifiers know when they do not know."""

"""How a command ends that cannot do what it was asked, and how it reads names."""

from typing import NoReturn

import typer

USAGE_ERROR = 2


def split_names(given: list[str] | None) -> list[str] | None:
    """Answers names that were given as "a,b", as "-m a -m b", or both."""
    return None if not given else [name.strip() for group in given for name in group.split(",") if name.strip()]


def fail(message: str) -> NoReturn:
    """Ends the command with a message."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(USAGE_ERROR)

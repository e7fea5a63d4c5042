"""`hesitant demo NAME`: trains and compares the methods on a small problem, and draws what they say."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hesitant.cli.failing import fail, split_names

if TYPE_CHECKING:
    from hesitant.demos.result import DemoResult

demo = typer.Typer(no_args_is_help=True, help="Train and compare the methods on a small problem; draw what they say.")

Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--methods", "-m", help="Methods, separated by commas or given repeatedly.", show_default="all of them"
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the data, the weights and the dropout.")]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Passes over the training data.", show_default="the demo's own")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the picture, the report and the figures.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, mps ...")]


@demo.command("two-moons")
def demo_two_moons(
    methods: Methods = None,
    seed: Seed = 0,
    epochs: Epochs = None,
    out: Out = Path("."),
    device: Device = "cpu",
) -> None:
    """The SNGP tutorial's two moons: what does each method say where there was no data?

    Prints a table and writes two-moons.png, two-moons.html (the report) and two-moons.json.
    """

    def load() -> "Callable[..., DemoResult]":
        from hesitant.demos.two_moons import run_two_moons

        return run_two_moons

    _run_demo(load, methods=methods, seed=seed, epochs=epochs, out=out, device=device)


@demo.command("digits")
def demo_digits(
    methods: Methods = None,
    seed: Seed = 0,
    epochs: Epochs = None,
    out: Out = Path("."),
    device: Device = "cpu",
) -> None:
    """Scanned digits, 0 to 7 to learn: what does each method say of an 8 or a 9?

    Nothing is downloaded. Prints a table and writes digits.png, digits.html (the report) and digits.json.
    """

    def load() -> "Callable[..., DemoResult]":
        from hesitant.demos.digits import run_digits

        return run_digits

    _run_demo(load, methods=methods, seed=seed, epochs=epochs, out=out, device=device)


def _run_demo(
    load: "Callable[[], Callable[..., DemoResult]]",
    *,
    methods: list[str] | None,
    seed: int,
    epochs: int | None,
    out: Path,
    device: str,
) -> None:
    console, notes = Console(), Console(stderr=True)
    try:
        run = load()
        from hesitant.demos.table import result_table
    except ModuleNotFoundError as error:
        fail(f"the demos need {error.name}, which is not installed: pip install 'hesitant[cli]'")
    options = {} if epochs is None else {"epochs": epochs}
    try:
        result = run(
            split_names(methods),
            seed=seed,
            out=out,
            device=device,
            announce=lambda name: notes.print(f"[bold]{name}[/bold]"),
            **options,
        )
    except (ValueError, OSError, ImportError) as error:
        fail(str(error))
    console.print(result_table(result))
    for path in result.files.values():
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)

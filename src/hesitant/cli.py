"""The `hesitant` command.

What is heavy (torch, matplotlib, scikit-learn) is imported inside the commands: `--help` answers at once.
"""

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as error:
    sys.exit(f"The hesitant command needs {error.name}, which is not installed: pip install 'hesitant[cli]'")

if TYPE_CHECKING:
    from hesitant.demos.result import DemoResult

USAGE_ERROR = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Makes deep classifiers know when they do not know.",
)
demo = typer.Typer(no_args_is_help=True, help="Train and compare the methods on a small problem; draw what they say.")
app.add_typer(demo, name="demo")

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
Files = Annotated[list[Path], typer.Argument(help="Predictions, a .npz for each method.", show_default=False)]
Names = Annotated[
    str | None, typer.Option(help="Of the methods, separated by commas.", show_default="the names of the files")
]
MaxRisk = Annotated[float, typer.Option(help="Error rate among answered inputs that is to be promised.")]
Delta = Annotated[float, typer.Option(help="Probability with which the promise may fail.")]
SCORE_HELP = (
    "What inputs are ranked by: confidence, predictive_entropy, mutual_information, logit_variance, dempster_shafer or "
    "energy."
)
RankedBy = Annotated[str, typer.Option(help=SCORE_HELP)]
Intervals = Annotated[bool, typer.Option("--intervals", help="Give figures with standard errors; takes seconds.")]
ClassNames = Annotated[
    str | None, typer.Option(help="Of the classes, separated by commas.", show_default="their numbers")
]
InputsFile = Annotated[
    Path | None, typer.Option("--inputs", help="The inputs, an .npy of images or rows.", show_default="none are shown")
]
Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder for the report, the figures and the policy.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, mps ...")]


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

    _run(load, methods=methods, seed=seed, epochs=epochs, out=out, device=device)


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

    _run(load, methods=methods, seed=seed, epochs=epochs, out=out, device=device)


# A part after \\b keeps its lines.
EVALUATE_HELP = """Compare methods by files of their predictions, of any framework.

Prints a table and what can be promised. Writes report.html, comparison.json and, where something can be promised, the
policy.json of the recommended method.

A file is a NumPy .npz of one method, as numpy.savez writes it; no pickle is loaded. Its arrays:

\b
probs    (N, C)     probabilities; or instead
logits   (N, C)     logits, (N,) if binary; or
samples  (S, N, C)  probabilities of S members
targets  (N,)       the true classes, from 0 on; not one-hot

For each out-of-domain set NAME one of these:

\b
ood.NAME.probs   ood.NAME.logits   ood.NAME.samples

All files have the same inputs in the same order. What is known of the cost may be added as single numbers:
milliseconds (an input), parameters, training_seconds.
"""


@app.command("evaluate", help=EVALUATE_HELP)
def evaluate(
    files: Files,
    names: Names = None,
    max_risk: MaxRisk = 0.01,
    delta: Delta = 0.05,
    score: RankedBy = "confidence",
    intervals: Intervals = False,
    class_names: ClassNames = None,
    inputs: InputsFile = None,
    out: Folder = Path("."),
) -> None:
    """Compares methods by files of their predictions; `EVALUATE_HELP` says how."""
    try:
        from hesitant.evaluate_files import evaluate_files
    except ModuleNotFoundError as error:
        _fail(f"evaluate needs {error.name}, which is not installed: pip install 'hesitant[cli]'")
    try:
        result = evaluate_files(
            files,
            out,
            names=_split(None if names is None else [names]),
            max_risk=max_risk,
            delta=delta,
            score=score,
            confidence_intervals=intervals,
            class_names=_split(None if class_names is None else [class_names]),
            inputs=inputs,
        )
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        _fail(str(error))
    typer.echo(f"{result.comparison}\n\n{result.verdict}\n")
    for path in result.files:
        typer.echo(f"wrote {path}")


def _run(
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
        _fail(f"the demos need {error.name}, which is not installed: pip install 'hesitant[cli]'")
    options = {} if epochs is None else {"epochs": epochs}
    try:
        result = run(
            _split(methods),
            seed=seed,
            out=out,
            device=device,
            announce=lambda name: notes.print(f"[bold]{name}[/bold]"),
            **options,
        )
    except (ValueError, OSError, ImportError) as error:
        _fail(str(error))
    console.print(result_table(result))
    for path in result.files.values():
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


def _split(methods: list[str] | None) -> list[str] | None:
    # Given as "a,b", as "-m a -m b", or both.
    return None if not methods else [name.strip() for group in methods for name in group.split(",") if name.strip()]


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(USAGE_ERROR)

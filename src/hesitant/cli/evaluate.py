"""`hesitant evaluate FILES`: compares methods by files of their predictions."""

from pathlib import Path
from typing import Annotated

import typer

from hesitant.cli.failing import fail, split_names

Files = Annotated[list[Path], typer.Argument(help="Predictions, a .npz for each method.", show_default=False)]
Names = Annotated[
    str | None, typer.Option(help="Of the methods, separated by commas.", show_default="the names of the files")
]
MaxRisk = Annotated[float, typer.Option(help="Error rate among answered inputs that is to be promised.")]
Delta = Annotated[float, typer.Option(help="Probability with which the promise may fail.")]
SCORE_HELP = (
    "What the data are ranked by: confidence, ood_score, predictive_entropy, mutual_information, logit_variance, "
    "dempster_shafer or energy."
)
RankedBy = Annotated[str, typer.Option(help=SCORE_HELP)]
DetectedBy = Annotated[str, typer.Option(help="What out-of-domain inputs are detected by, another of these scores.")]
Intervals = Annotated[bool, typer.Option("--intervals", help="Give figures with standard errors; takes seconds.")]
ClassNames = Annotated[
    str | None, typer.Option(help="Of the classes, separated by commas.", show_default="their numbers")
]
InputsFile = Annotated[
    Path | None, typer.Option("--inputs", help="The inputs, an .npy of images or rows.", show_default="none are shown")
]
Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder for the report, the figures and the policy.")]

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


def evaluate(
    files: Files,
    names: Names = None,
    max_risk: MaxRisk = 0.01,
    delta: Delta = 0.05,
    score: RankedBy = "confidence",
    ood_score: DetectedBy = "ood_score",
    intervals: Intervals = False,
    class_names: ClassNames = None,
    inputs: InputsFile = None,
    out: Folder = Path("."),
) -> None:
    """Compares methods by files of their predictions; `EVALUATE_HELP` says how."""
    try:
        from hesitant.cli.evaluate_files import evaluate_files
    except ModuleNotFoundError as error:
        fail(f"evaluate needs {error.name}, which is not installed: pip install 'hesitant[cli]'")
    try:
        result = evaluate_files(
            files,
            out,
            names=split_names(None if names is None else [names]),
            max_risk=max_risk,
            delta=delta,
            score=score,
            ood_score=ood_score,
            confidence_intervals=intervals,
            class_names=split_names(None if class_names is None else [class_names]),
            inputs=inputs,
        )
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        fail(str(error))
    typer.echo(f"{result.comparison}\n\n{result.verdict}\n")
    for path in result.files:
        typer.echo(f"wrote {path}")

"""What `hesitant evaluate` does: a comparison of files of predictions, with its report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from hesitant.detection import Score
from hesitant.evaluation.comparison import Comparison, load_predictions, recommend, require_same_sets
from hesitant.files import require_folder, write_text
from hesitant.report import Look, Verdict, rendered, verdict

__all__ = ["Evaluation", "evaluate_files"]


@dataclass(frozen=True)
class Evaluation:
    """What was found out, and the files that say it."""

    comparison: Comparison
    verdict: Verdict
    files: tuple[Path, ...]


def evaluate_files(
    files: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    max_risk: float = 0.01,
    delta: float = 0.05,
    score: str = "confidence",
    ood_score: str = "ood_score",
    confidence_intervals: bool = False,
    class_names: Sequence[str] | None = None,
    inputs: Path | None = None,
) -> Evaluation:
    """Compares methods by files of their predictions.

    Writes report.html and comparison.json; and policy.json, of the recommended method, if it can promise anything: else
    there is none afterwards. Each is written whole or not at all, and none before all is known: after an error in the
    files or options, what an earlier run wrote is as it was.

    Args:
        files: as `load_predictions` reads them, one a method.
        out: folder to write to; it is made if need be.
        names: of the methods; by default the names of the files.
        max_risk: as in `recommend`.
        delta: as in `recommend`.
        score: what the data are ranked by, as in `uncertainty`.
        ood_score: what out-of-domain inputs are detected by, as in `uncertainty`.
        confidence_intervals: as in `Comparison.from_predictions`.
        class_names: as in `report`.
        inputs: an .npy of the inputs, `(N, ...)`, to be shown.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a file or an option is wrong; the error names it.
    """
    names = [path.stem for path in files] if names is None else names
    if len(names) != len(files) or len(set(names)) != len(names):
        raise ValueError(
            f"names are {', '.join(names)} for {len(files)} files: give each method one name of its own, --names a,b"
        )
    folder = require_folder(out)
    loaded = {name: load_predictions(path) for name, path in zip(names, files, strict=True)}
    require_same_sets({str(path): loaded[name] for name, path in zip(names, files, strict=True)})
    sets = list(dict.fromkeys(other for file in loaded.values() for other in file.ood))
    comparison = Comparison.from_predictions(
        {name: file.prediction for name, file in loaded.items()},
        ood={other: {name: file.ood[other] for name, file in loaded.items() if other in file.ood} for other in sets},
        score=cast(Score, score),
        ood_score=cast(Score, ood_score),
        costs={name: file.cost for name, file in loaded.items()},
        confidence_intervals=confidence_intervals,
        inputs=None if inputs is None else _inputs(inputs, len(next(iter(loaded.values())).prediction)),
    )
    recommendation = recommend(comparison, max_risk=max_risk, delta=delta)
    page = rendered(comparison, recommendation, Look(class_names))
    content = {**comparison.to_dict(), "recommendation": recommendation.to_dict()}
    policy = recommendation.outcomes[recommendation.method].policy
    # The first to go, and the last to come: beside a page of one run no policy of another may lie.
    (folder / "policy.json").unlink(missing_ok=True)
    written = [
        write_text(folder / "report.html", page),
        write_text(folder / "comparison.json", json.dumps(content, indent=2) + "\n"),
    ]
    if policy is not None:
        policy.save(folder / "policy.json")
        written.append(folder / "policy.json")
    return Evaluation(comparison, verdict(comparison, recommendation), tuple(written))


def _inputs(path: Path, num_inputs: int) -> Any:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is no .npy of plain numbers ({error}): write one with numpy.save(path, inputs)"
        ) from (error)
    if not isinstance(array, np.ndarray) or array.ndim < 2 or len(array) != num_inputs:
        shape = array.shape if isinstance(array, np.ndarray) else "several arrays"
        raise ValueError(f"{path} holds {shape}, expected ({num_inputs}, ...): an image or a row for each input")
    return array

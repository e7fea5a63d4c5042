"""What the benchmarks on real data share: rows that are trained and chosen, and measured afterwards.

Two parts that a kill between any two of their steps does not undo:

`choose`    trains the models of a row, calibrates its method and fits its policies, and writes all that into a work
            folder. It is given `Known`, in-domain data alone, and nothing that could load more: it runs where test and
            out-of-domain data are not there.
`measure`   reads the work folder, and only predicts: on `Unseen`, the test and the out-of-domain data.

Each row is calibrated (`hesitant.calibrate`) on one half of the validation data; its policies, for 2 % and 5 % risk
with the guard of `recommend`, are fitted on the other. Out-of-domain inputs are detected by the method's own
`ood_score`.
"""

import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _measuring import in_turns, machine, medians, ratio
from torch import nn

from hesitant import SNGP, DeepEnsemble, DeferralPolicy, Deterministic, MCDropout, Prediction, calibrate
from hesitant.detection import FeatureDetector
from hesitant.evaluation import CalibrationWarning, accuracy, aupr, aurc, auroc, ece, fpr95, nll, uncertainty
from hesitant.files import replacing, write_text
from hesitant.nn import SpectralNormalizer

RISKS = (0.02, 0.05)
GUARD = 0.05  # of hesitant.evaluation.recommend
# Beside each method's own score: what else it could be asked to detect by.
OTHER_SCORES = ("confidence", "predictive_entropy", "mutual_information", "energy")
TIMED_ROUNDS = 3
# Detectors that any network has, and those that need its last layer to be a Linear.
OF_ANY = {
    "knn": "kNN",
    "relative_mahalanobis": "relative Mahalanobis",
    "energy": "energy",
    "gen": "GEN",
    "max_softmax": "max softmax",
}
OF_LINEAR = {"vim": "ViM", "scale": "SCALE"}


@dataclass(frozen=True)
class Known:
    """All data that the choosing part is given: in-domain, each `(inputs, targets)` or what `fit` takes.

    Attributes:
        train: sets weights and covariances.
        tune: the first half of the validation data: temperatures, factors, a regularisation.
        defer: its second half: policies.
    """

    train: Any
    tune: Any
    defer: Any


@dataclass(frozen=True)
class Unseen:
    """What the measuring part alone loads.

    Attributes:
        test: in-domain, with targets.
        ood: of each out-of-domain set, its inputs.
        timed: some inputs of the test data, to predict against the clock.
        num_timed: how many.
        shifts: of each strength of corruption, the corrupted test data by the corruption's name.
    """

    test: Any
    ood: Mapping[str, Any]
    timed: Any
    num_timed: int
    shifts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A method of the table.

    Attributes:
        title: its name in the table.
        kind: of the models that it is made of.
        method: makes it of them.
        numbers: of the models, by the seed.
        detector: the name of the detector, fitted to the training data, whose score it detects by; None for its own.
        factors: the ladder that an SNGP's mean-field factor is chosen from; None for that of `calibrate`.
        seeds: those that it has, of the seeds asked for; None for all.
    """

    title: str
    kind: str
    method: Callable[[list[nn.Module]], Any]
    numbers: Callable[[int], Sequence[int]] = lambda seed: [seed]
    detector: Any = None
    factors: Sequence[float] | None = None
    seeds: Sequence[int] | None = None

    def has(self, seed: int) -> bool:
        """Whether the row is measured with this seed."""
        return self.seeds is None or seed in self.seeds


@dataclass(frozen=True)
class Study:
    """One table: its rows, and how the models that they are made of are built and trained.

    Attributes:
        name: of the table, in the results.
        rows: by their names, the baseline of all ratios, `deterministic`, among them.
        build: makes the untrained model of a kind and number, its weights following from the number.
        train: trains such a model.
        work: the folder of what was trained and chosen.
        settings: what the results say of it.
    """

    name: str
    rows: Mapping[str, Row]
    build: Callable[[str, int], nn.Module]
    train: Callable[[nn.Module, Known, str, int], None]
    work: Path
    settings: Mapping[str, Any]

    def kept_model(self, kind: str, number: int) -> Path:
        """Answers the file of a trained model."""
        return self.work / self.name / f"{kind}-{number}.pt"

    def kept_row(self, row: str, seed: int) -> Path:
        """Answers the file of what was chosen for a row."""
        return self.work / self.name / f"{row}-seed{seed}.json"

    def trained(self, kind: str, number: int) -> tuple[nn.Module, float]:
        """Answers a model as it was trained, and the seconds that it took."""
        kept = torch.load(self.kept_model(kind, number), weights_only=True)
        model = self.build(kind, number)
        model.load_state_dict(kept["state"])
        return model.eval(), float(kept["seconds"])

    def method(self, name: str, seed: int) -> tuple[Any, float]:
        """Answers the method of a row, not calibrated, and the seconds that its models took to train."""
        row = self.rows[name]
        found = [self.trained(row.kind, number) for number in row.numbers(seed)]
        return row.method([model for model, _ in found]), sum(seconds for _, seconds in found)

    def answering(self, name: str, method: Any, known: Known) -> Any:
        """Answers what predicts in a row: its method, calibrated already, or a detector that is fitted on it here."""
        detector = self.rows[name].detector
        return method if detector is None else FeatureDetector(method, detector).fit(known.train)


def bounded(model: nn.Module, classifier: str) -> nn.Module:
    """Answers a plain network whose weights are bounded while it trains as an SNGP's are, all but its classifier's."""
    normalizer = SpectralNormalizer(model, "initial", exclude=(classifier,))

    def before(module: nn.Module, _args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            normalizer.project()

    def after(module: nn.Module, _args: Any, _output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            normalizer.measure()  # convolutions that were met just now, before a step moves them

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    return model


def standard_rows(num_members: int, num_passes: int, *, ensembles: Sequence[int] | None = None) -> dict[str, Row]:
    """Answers the rows of every table, of the kinds `plain`, `control` and `sngp`.

    Args:
        num_members: of an ensemble, the first of which is the single model of its seed.
        num_passes: of MC dropout.
        ensembles: the seeds with an ensemble; None for all, each of members of its own.
    """

    def first(seed: int) -> list[int]:
        return [seed if ensembles is not None else seed * num_members]

    def members(seed: int) -> list[int]:
        return (
            [*range(num_members)] if ensembles is not None else [*range(seed * num_members, (seed + 1) * num_members)]
        )

    def single(models: list[nn.Module]) -> nn.Module:
        return models[0]

    rows = {
        "deterministic": Row("deterministic", "plain", lambda models: Deterministic(models[0]), first),
        "control": Row("deterministic, SNGP's recipe", "control", lambda models: Deterministic(models[0]), first),
        "mc_dropout": Row(
            f"MC dropout, {num_passes} passes", "plain", lambda models: MCDropout(models[0], num_passes), first
        ),
        "deep_ensemble": Row(f"deep ensemble of {num_members}", "plain", DeepEnsemble, members, seeds=ensembles),
        "no_covariance": Row("SNGP without its covariance", "sngp", single, first, factors=(0.0,)),
        "sngp": Row("SNGP", "sngp", single, first),
        "sngp_ensemble": Row(f"ensemble of {num_members} SNGPs", "sngp", DeepEnsemble, members, seeds=ensembles),
    }
    rows |= detector_rows(rows, "deterministic", {**OF_ANY, **OF_LINEAR})
    return rows | detector_rows(rows, "control", {"ddu": "DDU"}) | detector_rows(rows, "sngp", OF_ANY)


def detector_rows(rows: Mapping[str, Row], base: str, detectors: Mapping[str, str]) -> dict[str, Row]:
    """Answers a row for each detector, named as the table calls it, on the weights and calibration of another row."""
    row = rows[base]
    return {
        f"{base}_{name}": replace(row, title=f"{row.title}, {title}", detector=name)
        for name, title in detectors.items()
    }


def choose(study: Study, known: Known, seed: int, rows: Iterable[str]) -> None:
    """Trains, calibrates and fits the policies of rows, but for what the work folder holds already."""
    for name in rows:
        row, kept = study.rows[name], study.kept_row(name, seed)
        if not row.has(seed) or kept.exists():
            continue
        for number in row.numbers(seed):
            _train(study, known, row.kind, number)
        method, seconds = study.method(name, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            options = {} if row.factors is None else {"mean_field_factors": row.factors}
            found = calibrate(method, known.tune, **options)
        began = time.perf_counter()
        answering = study.answering(name, method, known)
        seconds += time.perf_counter() - began
        prediction = answering.predict(known.defer).to("cpu")
        chosen = {
            "temperature": found.temperature,
            "mean_field_factor": found.mean_field_factor,
            "tune_nll_before": found.nll_before,
            "tune_nll": found.nll_after,
            "defer_accuracy": accuracy(prediction),
            "defer_nll": nll(prediction),
            "training_seconds": seconds,
            "policies": {str(risk): _policy(prediction, risk, _beside(kept, risk)) for risk in RISKS},
        }
        write_text(kept, json.dumps(chosen, indent=2) + "\n")
        print(f"{study.name}, seed {seed}, {name}: {_said(chosen)}", flush=True)


def _train(study: Study, known: Known, kind: str, number: int) -> None:
    kept = study.kept_model(kind, number)
    if kept.exists():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    model = study.build(kind, number)
    began = time.perf_counter()
    study.train(model, known, kind, number)
    seconds = time.perf_counter() - began
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    with replacing(kept) as unfinished:
        torch.save({"state": state, "seconds": seconds}, unfinished)
    print(f"{study.name}: trained {kind} {number} in {seconds:.0f} s", flush=True)


def _beside(kept: Path, risk: float) -> Path:
    return kept.with_name(f"{kept.stem}-risk{risk}.json")


def _policy(prediction: Prediction, risk: float, path: Path) -> str:
    """Writes the policy for a risk and answers what it is, or why nothing can be promised."""
    try:
        policy = DeferralPolicy.calibrate(prediction, max_risk=risk, guard=GUARD)
    except ValueError as refusal:
        path.unlink(missing_ok=True)
        return str(refusal)
    policy.save(path)
    return f"answers {policy.coverage:.4f} of {policy.num_calibration}"


def calibrated(study: Study, name: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """Answers the method of a row as it was chosen, and what was chosen."""
    chosen: dict[str, Any] = json.loads(study.kept_row(name, seed).read_text())
    method, _ = study.method(name, seed)
    method.temperature = chosen["temperature"]
    for process in method.modules():
        if isinstance(process, SNGP):
            process.calibrate_factor(chosen["mean_field_factor"])
    return method, chosen


def measure(
    study: Study, known: Known, unseen: Unseen, seed: int, rows: Iterable[str], device: str, results: Path
) -> None:
    """Measures what was chosen for rows, but for what the results hold of this very choice already.

    Detectors are fitted to the training data again: nothing but a seed is in it, and they are in no file.
    """
    measured = read(results).get(study.name, {}).get("rows", {})
    baseline = calibrated(study, "deterministic", seed)[0].to(device)
    for name in rows:
        kept = study.kept_row(name, seed)
        digest = hashlib.sha256(kept.read_bytes()).hexdigest()[:16] if study.rows[name].has(seed) else None
        before = measured.get(name, {}).get("seeds", {}).get(str(seed), {})
        if digest is None or before.get("chosen") == digest:
            continue
        method, chosen = calibrated(study, name, seed)
        answering = study.answering(name, method.to(device), known)
        paths = {risk: _beside(kept, risk) for risk in RISKS}
        policies = {risk: DeferralPolicy.load(path) if path.exists() else None for risk, path in paths.items()}
        # A detector's row answers as the row that it is on: under corruptions it has nothing of its own.
        asked = unseen if study.rows[name].detector is None else replace(unseen, shifts={})
        found = {
            **figures(answering.predict, asked, policies),
            **_cost(answering, baseline, unseen),
            **{key: chosen[key] for key in ("temperature", "mean_field_factor", "training_seconds")},
        }
        _note(study, results, device, name, seed, {**found, "chosen": digest})
        print(f"{study.name}, seed {seed}, {name}: {_said(found)}", flush=True)


def _cost(method: Any, baseline: Any, unseen: Unseen) -> dict[str, float]:
    durations = in_turns(
        {"row": lambda: method.predict(unseen.timed), "deterministic": lambda: baseline.predict(unseen.timed)},
        rounds=TIMED_ROUNDS,
        repeats=1,
        warm_up=1,
    )
    milliseconds = medians(durations)["row"] / unseen.num_timed
    return {"milliseconds": milliseconds, "ratio": ratio(durations, "row", "deterministic")}


def figures(
    predict: Callable[[Any], Prediction], unseen: Unseen, policies: Mapping[float, DeferralPolicy | None]
) -> dict[str, float | None]:
    """Answers the figures of a method that is ready: None where its policy could promise nothing."""
    inside = predict(unseen.test).to("cpu")
    answer: dict[str, float | None] = {
        "accuracy": accuracy(inside),
        "nll": nll(inside),
        "ece": ece(inside),
        "aurc": aurc(inside),
    }
    for risk, policy in policies.items():
        accepted = None if policy is None else policy.accept(inside)
        answer[f"coverage.{risk}"] = None if accepted is None else float(accepted.double().mean())
        answer[f"risk.{risk}"] = (
            None if accepted is None or not bool(accepted.any()) else 1 - accuracy(inside[accepted])
        )
    for name, inputs in unseen.ood.items():
        outside = predict(inputs).to("cpu")
        scores = uncertainty(inside, "ood_score"), uncertainty(outside, "ood_score")
        answer |= {f"auroc.{name}": auroc(*scores), f"aupr.{name}": aupr(*scores), f"fpr95.{name}": fpr95(*scores)}
        for other in OTHER_SCORES:
            if other in inside.available or other == "confidence":
                by_other = uncertainty(inside, other), uncertainty(outside, other)  # type: ignore[arg-type]
                answer[f"auroc_{other}.{name}"] = auroc(*by_other)
        for risk, policy in policies.items():
            answer[f"handed_over.{risk}.{name}"] = (
                None if policy is None else 1 - float(policy.accept(outside).double().mean())
            )
    for strength, corrupted in unseen.shifts.items():
        found = [predict(data).to("cpu") for data in corrupted.values()]
        for figure, metric in (("accuracy", accuracy), ("nll", nll), ("ece", ece)):
            answer[f"{figure}.strength{strength}"] = statistics.mean(metric(prediction) for prediction in found)
    return answer


def _said(found: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
    )


def read(results: Path) -> dict[str, Any]:
    """Answers what was measured so far."""
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    return found


def _note(study: Study, path: Path, device: str, row: str, seed: int, found: dict[str, Any]) -> None:
    """Adds the figures of a row and seed to the results, a file that is whole at any moment."""
    results = read(path)
    table = results.setdefault(study.name, {})
    table["settings"] = {"risks": RISKS, "guard": GUARD, **study.settings}
    table["machine"] = {**machine(torch.device(device)), "threads": torch.get_num_threads()}
    of_row = table.setdefault("rows", {}).setdefault(row, {"title": study.rows[row].title, "seeds": {}})
    of_row["seeds"][str(seed)] = found
    of_row["summary"] = _summary(list(of_row["seeds"].values()))
    table["rows"] = {name: table["rows"][name] for name in study.rows if name in table["rows"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=2) + "\n")


def _summary(seeds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Answers median, least and greatest of each figure, of the seeds that have it."""
    answer = {}
    for name, first in seeds[0].items():
        values = [each[name] for each in seeds if each.get(name) is not None]
        if values and not isinstance(first, str):
            answer[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return answer

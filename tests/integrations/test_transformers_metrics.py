"""What the Trainer logs of the deployed distribution are the numbers of hesitant.evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.running import loaded, trainer
from tests.integrations.tiny_bert import TEST, UNKNOWN, bert, sentences, sngp
from transformers import EvalPrediction

from hesitant import Deterministic, MCDropout, Prediction
from hesitant.evaluation import Score, accuracy, auroc, brier, ece, nll, uncertainty
from hesitant.integrations.transformers import DeployedMetrics, FitCovariance

METRICS = {"accuracy": accuracy, "nll": nll, "brier": brier, "ece": ece}


def expected(told: Any, method: Any, score: Score, **sets: Any) -> dict[str, float]:
    """The metrics of what the Trainer predicted, and of what the method predicts out-of-domain."""
    prediction = Prediction.from_logits(torch.from_numpy(told.predictions), targets=told.label_ids)
    answer = {f"eval_{name}": metric(prediction) for name, metric in METRICS.items()}
    inside = uncertainty(prediction, score)
    for name, data in sets.items():
        answer[f"eval_auroc_{name}"] = auroc(inside, uncertainty(method.predict(data), score))
    return answer


@pytest.mark.parametrize("batched", [False, True])
def test_the_trainer_logs_the_metrics_of_the_deployed_distribution(batched: bool, tmp_path: Path) -> None:
    method, other = sngp(), sentences(15, 5, known=False)
    metrics = DeployedMetrics(method, {"unknown": UNKNOWN, "other": other})
    runs = trainer(method, tmp_path, FitCovariance(), compute_metrics=metrics, batch_eval_metrics=batched)
    runs.train()
    found = runs.evaluate()
    assert {name: found[name] for name in found if name.startswith("eval_auroc")}.keys() == {
        "eval_auroc_unknown",
        "eval_auroc_other",
    }
    runs.args.batch_eval_metrics = False
    for name, value in expected(runs.predict(TEST), method, "ood_score", unknown=UNKNOWN, other=other).items():
        assert found[name] == value, name
    # In training each evaluation is of the checkpoint of its step.
    logged = {entry["step"]: entry for entry in runs.state.log_history if "eval_nll" in entry}
    saved = loaded(tmp_path / "checkpoint-3")
    assert logged[3]["eval_nll"] == pytest.approx(nll(saved.predict(TEST)), rel=1e-5)
    by_hand = auroc(*(saved.predict(data).ood_score for data in (TEST, UNKNOWN)))
    assert logged[3]["eval_auroc_unknown"] == pytest.approx(by_hand, abs=0.02)


def test_the_best_model_may_be_chosen_by_them(tmp_path: Path) -> None:
    method = sngp()
    best = {"load_best_model_at_end": True, "metric_for_best_model": "nll", "greater_is_better": False}
    runs = trainer(method, tmp_path, FitCovariance(), compute_metrics=DeployedMetrics(), **best)
    runs.train()
    assert nll(method.predict(TEST)) == pytest.approx(float(runs.state.best_metric or 0), rel=1e-5)


@pytest.mark.parametrize("build", [lambda: MCDropout(bert(), num_samples=3), lambda: Deterministic(bert())])
def test_methods_without_a_covariance_have_them_too(build: Any, tmp_path: Path) -> None:
    method = build().eval()
    metrics = DeployedMetrics(method, {"unknown": UNKNOWN}, score="predictive_entropy")
    runs = trainer(method, tmp_path, compute_metrics=metrics)
    found = runs.evaluate()
    for name, value in expected(runs.predict(TEST), method, "predictive_entropy", unknown=UNKNOWN).items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_an_unfitted_model_has_no_deployed_distribution() -> None:
    method = sngp().eval()
    metrics = DeployedMetrics(method, {"unknown": UNKNOWN})
    with pytest.raises(Exception, match="fit_covariance"):
        metrics(EvalPrediction(predictions=torch.randn(3, 3).numpy(), label_ids=torch.arange(3).numpy()))


def test_scores_that_logits_do_not_tell_are_refused() -> None:
    sets = {"unknown": UNKNOWN}
    for method, score in (
        (MCDropout(bert()), "ood_score"),
        (sngp(ood_score="knn"), "ood_score"),
        (sngp(), "logit_variance"),
        (Deterministic(bert(), temperature=2.0), "energy"),
    ):
        with pytest.raises(ValueError, match=f"score='{score}' cannot be told .* {type(method).__name__}"):
            DeployedMetrics(method, sets, score=score)  # type: ignore[arg-type]
    DeployedMetrics(sngp(ood_score="knn"), sets, score="dempster_shafer")
    with pytest.raises(ValueError, match=r"no method of hesitant.*\['unknown'\]"):
        DeployedMetrics(bert(), sets)
    with pytest.raises(ValueError, match="model=NoneType"):
        DeployedMetrics(out_of_domain=sets)

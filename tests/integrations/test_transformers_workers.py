"""Two workers of Hugging Face's Trainer have one model, fitted to the data of both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.running import assert_equal_states, loaded
from tests.integrations.tiny_bert import TEST, TRAIN, sngp
from tests.integrations.workers import in_workers

from hesitant.evaluation import nll

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_workers("trainer_worker.py", tmp_path_factory.mktemp("workers"))


def test_workers_have_one_model(answers: list[dict[str, Any]]) -> None:
    first, second = answers
    for name in ("best", "whole", "resumed", "odd"):
        assert_equal_states(first[name], second[name])


def test_evaluations_and_checkpoints_are_of_the_deployed_distribution(answers: list[dict[str, Any]]) -> None:
    answer = answers[0]
    losses = [entry["eval_loss"] for entry in answer["log"] if "eval_loss" in entry]
    best = loaded(Path(answer["checkpoint"]))
    assert best.covariance_state == "fitted"
    assert float(best.gp.laplace.num_seen) == len(TRAIN)
    # The workers' last batches are filled up to one size, which the mean of the Trainer's losses counts.
    assert nll(best.predict(TEST)) == pytest.approx(min(losses), rel=2e-2)
    assert answer["logits"].shape == (len(TEST), 3)
    torch.testing.assert_close(answer["logits"].softmax(-1), best.predict(TEST).probs)
    assert_equal_states(answer["best"], dict(best.state_dict()))


def test_the_covariance_is_that_of_one_worker(answers: list[dict[str, Any]]) -> None:
    for name, data in (("best", TRAIN), ("whole", TRAIN), ("odd", TRAIN[:37])):
        method = sngp(norm_bound=None)
        method.load_state_dict({n: t for n, t in answers[0][name].items() if "spectral" not in n})
        assert method.covariance_state == "fitted"
        told = method.gp.precision
        method.fit_covariance(data)
        torch.testing.assert_close(told, method.gp.precision, rtol=1e-6, atol=1e-6)


def test_a_resumed_run_ends_as_an_unbroken_one(answers: list[dict[str, Any]]) -> None:
    assert_equal_states(answers[0]["whole"], answers[0]["resumed"])

"""Two workers of Lightning's Trainer have one module, fitted to the data of both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.running import assert_equal_states
from tests.integrations.tiny_lightning import FAR, TEST, TRAIN, Classifier, network
from tests.integrations.workers import in_workers

from hesitant.evaluation import StreamingMetrics, nll

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[dict[str, Any]]:
    return in_workers("lightning_worker.py", folder)


def loaded(path: Any, *, norm: bool = True) -> Classifier:
    module = Classifier(network(norm=norm))
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return module.eval()


def test_workers_have_one_model(answers: list[dict[str, Any]]) -> None:
    first, second = answers
    assert_equal_states(first["fitted"], second["fitted"])
    # Without SyncBatchNorm each worker has statistics of its own, which a fit evens out.
    assert_equal_states(first["averaged"], second["averaged"])


def test_checkpoints_are_of_the_deployed_distribution(answers: list[dict[str, Any]]) -> None:
    answer = answers[0]
    best = loaded(answer["best"], norm=False)
    assert best.method.covariance_state == "fitted"
    assert float(best.method.gp.laplace.num_seen) == len(TRAIN)
    assert nll(best.method.predict(TEST)) == pytest.approx(min(answer["validated"]), rel=1e-4)
    assert loaded(answer["last"], norm=False).method.covariance_state == "fitted"


def test_the_covariance_is_that_of_one_worker(answers: list[dict[str, Any]]) -> None:
    for name, norm in (("fitted", False), ("averaged", True)):
        module = Classifier(network(norm=norm), norm_bound=None)
        module.load_state_dict({n: t for n, t in answers[0][name].items() if "spectral" not in n})
        assert module.method.covariance_state == "fitted"
        told = module.method.gp.precision
        module.method.fit_covariance(TRAIN)
        torch.testing.assert_close(told, module.method.gp.precision, rtol=1e-6, atol=1e-6)


def test_every_checkpoint_of_a_step_is_fitted(folder: Path, answers: list[dict[str, Any]]) -> None:
    saved = list((folder / "steps").glob("*.ckpt"))
    assert len(saved) == 3
    for path in saved:
        assert loaded(path).method.covariance_state == "fitted"


def test_the_sums_are_not_broadcast(answers: list[dict[str, Any]]) -> None:
    assert answers[0]["broadcast"]
    assert not [name for name in answers[0]["broadcast"] if "laplace" in name]


def test_the_metrics_of_all_workers_are_those_of_one(answers: list[dict[str, Any]]) -> None:
    module = Classifier()
    module.load_state_dict(answers[0]["averaged"])
    alone = StreamingMetrics()
    for row in range(len(TEST)):  # rows by themselves, for a forward pass of many rounds as it likes
        alone.update(module.method.predict(TEST[row : row + 1]))
        alone.update_ood("far", module.method.predict(FAR[row : row + 1]))
    assert answers[0]["metrics"] == answers[1]["metrics"] == alone.compute()

"""SNGP's score by its nearest neighbours: of the very features, in the same pass, as stale as the covariance."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesitant
from hesitant import SNGP, DeepEnsemble
from hesitant.detection import uncertainty
from hesitant.nn import CovarianceError


def rows(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(seed))


def sngp(seed: int = 0, **options: Any) -> SNGP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        return SNGP(net, ood_score="knn", num_inducing=32, **options)


def fitted(**options: Any) -> SNGP:
    model = sngp(**options)
    model.fit_covariance(rows(50))
    return model


def plainly(model: SNGP, x: Tensor, known: Tensor) -> Tensor:
    with torch.no_grad():
        known, x = (nn.functional.normalize(model.model[:2](each).double(), dim=1) for each in (known, x))
    return (x.unsqueeze(1) - known).norm(dim=-1).amin(1)


@pytest.mark.parametrize("posterior", ["mean_field", "monte_carlo"])
def test_the_score_is_the_distance_to_the_nearest_training_input(posterior: Any) -> None:
    model, x = fitted(), rows(9, seed=1)
    prediction = model.predict(x, posterior=posterior, batch_size=4)
    torch.testing.assert_close(prediction.ood_score, plainly(model, x, rows(50)), rtol=0, atol=1e-6)
    assert torch.equal(uncertainty(prediction, "ood_score"), prediction.ood_score)
    assert float(model.predict(rows(50)).ood_score.max()) < 1e-6  # what was seen


def test_nothing_else_of_the_prediction_changes() -> None:
    other = sngp()
    other.start_from_classifier(rows(50))
    plain = SNGP(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), num_inducing=32)
    plain.load_state_dict({k: v for k, v in other.state_dict().items() if not k.startswith("neighbors.")})
    for model in (plain, other):
        model.fit_covariance(rows(50))
    x = rows(5, seed=1)
    assert torch.equal(plain.predict(x).probs, other.predict(x).probs)
    assert torch.equal(plain.predict(x).energy, other.predict(x).energy)
    assert not torch.equal(plain.predict(x).ood_score, other.predict(x).ood_score)


def test_a_temperature_does_not_move_it_and_a_policy_knows_it() -> None:
    model, x = fitted(), rows(5, seed=1)
    before = model.predict(x)
    model.temperature = 3.0
    after = model.predict(x)
    assert torch.equal(before.ood_score, after.ood_score)
    assert not torch.equal(before.probs, after.probs)
    plain = SNGP(nn.Linear(4, 3), num_inducing=32)
    plain.fit_covariance(rows(50))
    near = SNGP(nn.Linear(4, 3), num_inducing=32, ood_score="knn")
    near.fit_covariance(rows(50))
    assert plain.predict(x).calibration != near.predict(x).calibration


def test_a_state_dict_holds_it() -> None:
    model, other, x = fitted(), sngp(1), rows(5, seed=1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.predict(x).ood_score, model.predict(x).ood_score)


def test_it_is_as_stale_as_the_covariance() -> None:
    model = fitted()
    with torch.no_grad():
        model.model[0].weight.mul_(1.1)
    with pytest.raises(CovarianceError, match="fit_covariance"):
        model.predict(rows(2))
    model.fit_covariance(rows(60, seed=2))
    torch.testing.assert_close(
        model.predict(rows(5)).ood_score, plainly(model, rows(5), rows(60, seed=2)), rtol=0, atol=1e-6
    )


def test_no_more_inputs_are_kept_than_it_has_room_for() -> None:
    model = sngp()
    assert model.neighbors is not None
    model.neighbors.max_inputs = 10
    model.fit_covariance(rows(50), batch_size=7)
    assert model.neighbors.inputs.shape == (10, 16)
    assert float((model.predict(rows(50)).ood_score < 1e-6).sum()) == 10  # of the training data themselves


def test_only_the_last_position_of_a_sequence_counts() -> None:
    class LastPosition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.score(x)  # (B, T, C)
            return logits[:, -1]

    model, x = SNGP(LastPosition(), ood_score="knn", num_inducing=32), rows(60).view(20, 3, 4)
    model.fit_covariance(x)
    assert model.neighbors is not None
    assert model.neighbors.inputs.shape == (20, 4)
    assert float(model.predict(x).ood_score.max()) < 1e-6


def test_two_threads_get_what_each_would_get_alone() -> None:
    model = fitted()
    inputs = [rows(200, seed=seed) for seed in range(8)]
    alone = [model.predict(x).ood_score for x in inputs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda x: model.predict(x).ood_score, inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_ensemble_of_them_answers_the_mean_distance() -> None:
    members = [fitted(seed=seed) for seed in range(3)]
    x = rows(5, seed=9)
    mean = torch.stack([member.predict(x).ood_score for member in members]).mean(0)
    torch.testing.assert_close(DeepEnsemble(members).predict(x).ood_score, mean)


def test_a_cast_keeps_it() -> None:
    model, x = fitted(), rows(5, seed=1)
    before = model.predict(x).ood_score
    torch.testing.assert_close(model.double().predict(x.double()).ood_score, before, rtol=0, atol=1e-6)


def test_fit_and_calibrate_work_with_it() -> None:
    model, y = sngp(), rows(60)[:, 0].gt(0).long()
    hesitant.fit(model, (rows(60), y), epochs=30, learning_rate=1e-2, progress=False)
    hesitant.calibrate(model, (rows(60, seed=3), rows(60, seed=3)[:, 0].gt(0.3).long()))
    assert float(model.predict(rows(60)).ood_score.max()) < 1e-6


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="ood_score='nearest' is not known"):
        SNGP(nn.Linear(4, 3), ood_score="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"momentum=0\.9"):
        sngp(momentum=0.9)

"""Sums over data are the same in any order and split, belong to their weights, and travel as bytes."""

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hesitant import SNGP, CovarianceSums, Deterministic
from hesitant.nn import CovarianceError, SpectralBoundWarning

OPTIONS: dict[str, dict[str, Any]] = {
    "shared": {},
    "sample weights": {"likelihood": "binary_logistic"},
    "knn": {"ood_score": "knn"},
    "classes": {"likelihood": "softmax"},
    "low rank": {"likelihood": "softmax", "covariance_rank": 4},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(97, 4, generator=seeded(1), dtype=torch.float64)


def sngp(**options: Any) -> SNGP:
    classes = 1 if options.get("likelihood") == "binary_logistic" else 5
    layers = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, classes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(*layers).double()
        for layer in (network[0], network[2]):
            layer.reset_parameters()
    options = {"num_inducing": 24, "kernel_scale": 2.0, "generator": seeded(), "ridge_penalty": 1e-2, **options}
    return SNGP(network, classifier="2", **options)


@pytest.fixture(params=OPTIONS)
def model(request: pytest.FixtureRequest) -> SNGP:
    model = sngp(**OPTIONS[request.param])
    model.prepare_covariance(X)
    return model


def whole(model: SNGP, data: Tensor = X) -> Tensor:
    """The sums that one worker's pass over the data gives."""
    alone = copy.deepcopy(model)
    alone.fit_covariance(X)  # the directions of low rank are those of all the data
    alone.fit_covariance(data, batch_size=len(data))
    return alone.gp.laplace.data_precision


def finished(sums: CovarianceSums, model: SNGP) -> Tensor:
    CovarianceSums(model).merge(sums).finish()
    assert model.covariance_state == "fitted"
    return model.gp.laplace.data_precision


def assert_equal(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> None:
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


@torch.no_grad()
def test_the_pass_is_these_sums(model: SNGP) -> None:
    expected = whole(model)
    sums = CovarianceSums(model).update(X)
    assert sums.count == len(X)
    assert_equal(finished(sums, model), expected)
    phi = model.gp.features(model.model[:-1](X))  # type: ignore[index]
    logits = model.gp.mean(model.model[:-1](X))  # type: ignore[index]
    if model.gp.likelihood == "softmax":
        p = logits.softmax(1)
        matrices = torch.einsum("bc,bm,bn->cmn", p * (1 - p), phi, phi)
        if model.gp.laplace.directions is not None:
            expected, matrices = expected[:-1, :, :-1], (matrices @ model.gp.laplace.directions).movedim(0, 1)
        assert_equal(expected, matrices)
        return
    p = torch.sigmoid(logits)
    weights = p * (1 - p) if model.gp.likelihood == "binary_logistic" else torch.ones(len(X), 1)
    assert_equal(expected, phi.T @ (weights * phi))


def merged_by_a_tree(parts: list[CovarianceSums], draw: random.Random) -> CovarianceSums:
    """Merges two that are drawn until one is left; some go through bytes, some through a pickle."""
    ways: list[Callable[[CovarianceSums], CovarianceSums]] = [
        lambda sums: sums,
        lambda sums: CovarianceSums.from_bytes(sums.to_bytes()),
        lambda sums: pickle.loads(pickle.dumps(sums)),
    ]
    while len(parts) > 1:
        draw.shuffle(parts)
        parts.append(draw.choice(ways)(parts.pop()).merge(draw.choice(ways)(parts.pop())))
    return parts[0]


@pytest.mark.parametrize("seed", range(8))
def test_any_split_in_any_order_and_any_tree_gives_the_sums_of_one_worker(model: SNGP, seed: int) -> None:
    draw = random.Random(seed)
    order = torch.randperm(len(X), generator=seeded(seed))
    cuts = sorted(draw.sample(range(1, len(X)), draw.randint(1, 12)))
    shares = list(X[order].tensor_split(cuts))
    shares.append(X[order][: draw.randint(1, 20)])  # added, and taken out again
    parts = [CovarianceSums(model).update(share, batch_size=draw.randint(1, 20)) for share in shares]
    taken = draw.choice(parts[:-1])
    taken.merge(parts[-1])
    if draw.random() < 0.5:
        taken.unmerge(parts.pop())
    else:
        taken.downdate(shares[len(parts) - 1])
        parts.pop()
    parts.append(CovarianceSums(model))  # of a worker without data
    sums = merged_by_a_tree(parts, draw)
    assert sums.count == len(X)
    assert_equal(finished(sums, model), whole(model))
    if model.neighbors is not None:
        found = torch.cdist(model.neighbors.inputs.double(), normalized(model, X).double())
        assert len(model.neighbors.inputs) == len(X)
        assert float(found.amin(0).max()) < 1e-6  # each of them is there


def normalized(model: SNGP, x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(model.model[:-1](x).detach().float(), dim=-1)  # type: ignore[index]


def test_a_row_that_is_unlearned_was_never_there(model: SNGP) -> None:
    model.fit_covariance(X)
    CovarianceSums.fitted(model).downdate(X[40:41]).finish()
    rest = torch.cat([X[:40], X[41:]])
    assert_equal(model.gp.laplace.data_precision, whole(model, rest))
    alone = copy.deepcopy(model)
    alone.fit_covariance(rest)
    assert model.covariance_state == alone.covariance_state == "fitted"
    inputs = torch.randn(50, 4, generator=seeded(3), dtype=torch.float64)
    one, other = model.predict(inputs), alone.predict(inputs)
    torch.testing.assert_close(one.logit_variance, other.logit_variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(one.ood_score, other.ood_score, rtol=1e-6, atol=1e-6)


def test_a_window_slides(model: SNGP) -> None:
    days = [CovarianceSums(model).update(day) for day in X.split(10)]
    window = CovarianceSums(model)
    for place, day in enumerate(days):
        window.merge(day)
        if place >= 3:
            window.unmerge(days[place - 3])
    assert window.count == 27
    assert_equal(finished(window, model), whole(model, X[-27:]))
    if model.neighbors is not None:
        assert len(model.neighbors.inputs) == 27


def test_what_all_is_taken_out_of_is_nothing(model: SNGP) -> None:
    sums = CovarianceSums(model).update(X)
    assert finished(sums, model).isfinite().all()
    sums.downdate(X[:50]).unmerge(CovarianceSums(model).update(X[50:]))
    assert sums.count == 0
    with pytest.raises(ValueError, match="at least one input"):
        sums.merge(CovarianceSums(model)).finish()
    assert_equal(finished(sums.update(X[:1]), model), whole(model, X[:1]))
    with pytest.raises(CovarianceError, match="2 inputs cannot be taken out of the 1"):
        sums.downdate(X[:2])
    with pytest.raises(CovarianceError, match="97 inputs cannot be taken out of the 1"):
        sums.unmerge(CovarianceSums(model).update(X))


def test_finish_may_come_often(model: SNGP) -> None:
    sums = CovarianceSums(model)
    for end in (30, 60, 97):
        sums.update(X[sums.count : end])
        sums.finish()
        assert_equal(model.gp.laplace.data_precision, whole(model, X[:end]))


def test_a_float32_model_rounds_its_features_by_the_batch() -> None:
    model = SNGP(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5)), num_inducing=24, kernel_scale=2.0)
    x = X.float()
    model.prepare_covariance(x)
    sums = CovarianceSums(model)
    for share in x.split(16):
        sums = CovarianceSums(model).update(share).merge(sums)
    alone = copy.deepcopy(model)
    alone.fit_covariance(x, batch_size=16)
    assert_equal(finished(sums, model), alone.gp.laplace.data_precision)  # the same batches
    assert_equal(finished(CovarianceSums(model).update(x, batch_size=5), model), alone.gp.laplace.data_precision, 1e-6)


# ---------------------------------------------------------------- data of all kinds


def test_data_are_what_fit_covariance_takes(model: SNGP) -> None:
    expected = whole(model)
    targets = torch.zeros(len(X), dtype=torch.long)
    for data in ((X, targets), DataLoader(TensorDataset(X, targets), batch_size=10), iter(X.split(10))):
        assert_equal(finished(CovarianceSums(model).update(data), model), expected)


def test_an_update_that_fails_half_way_says_so(model: SNGP) -> None:
    bad = X.clone()
    bad[50] = float("nan")
    sums = CovarianceSums(model).update(X[:10])
    with pytest.raises(ValueError, match="nothing was added"):
        sums.update(bad[45:55])
    assert sums.count == 10  # the batch was refused as a whole
    assert_equal(finished(sums, model), whole(model, X[:10]))
    with pytest.raises(ValueError, match="NaN or Inf"):
        sums.update(bad, batch_size=10)
    for verb in (sums.finish, sums.to_bytes, lambda: sums.update(X), lambda: CovarianceSums(model).merge(sums)):
        with pytest.raises(CovarianceError, match="after a part of its data was added"):
            verb()


# ---------------------------------------------------------------- what they belong to


def test_sums_of_weights_that_moved_end_with_an_error(model: SNGP) -> None:
    sums = CovarianceSums(model).update(X)
    written = sums.to_bytes()
    with torch.no_grad():
        model.gp.beta[0, 0] += 1
    for verb in (lambda: sums.update(X), sums.finish):
        with pytest.raises(CovarianceError, match="weights have moved since these sums were begun"):
            verb()
    with pytest.raises(CovarianceError, match="belong to different weights"):
        CovarianceSums(model).merge(CovarianceSums.from_bytes(written))
    assert model.covariance_state == "none"


def test_a_step_of_another_model_is_no_move(model: SNGP) -> None:
    sums = CovarianceSums(model).update(X[:50])
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert_equal(finished(sums.update(X[50:]), model), whole(model))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_inducing": 16}, "num_inducing=24 and the others with num_inducing=16"),
        ({"likelihood": "poisson"}, "out_features=5 and the others with out_features=1"),
        ({"ood_score": "knn"}, "neighbors=None and the others with neighbors=50000"),
        ({"activation": torch.sin}, "activation='cos' and the others with activation='sin'"),
        ({"likelihood": "softmax"}, "likelihood='gaussian' and the others with likelihood='softmax'"),
        ({"kernel_scale": 3.0}, "belong to different weights"),
        ({"generator": seeded(7)}, "belong to different weights"),
    ],
)
def test_sums_of_other_weights_or_options_are_refused_by_name(option: dict[str, Any], message: str) -> None:
    model = sngp()
    if option.get("likelihood") == "poisson":
        layers = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)
        other = SNGP(nn.Sequential(*layers).double(), classifier="2", num_inducing=24, **option)
        other.prepare_covariance(X)
    else:
        other = sngp(**option)
    mine, theirs = CovarianceSums(model).update(X[:50]), CovarianceSums(other).update(X[50:])
    before = mine.to_bytes()
    with pytest.raises(CovarianceError, match=message):
        mine.merge(CovarianceSums.from_bytes(theirs.to_bytes()))
    assert mine.to_bytes() == before


def test_a_low_rank_is_aimed_at_the_data_whenever_there_is_no_covariance() -> None:
    model = sngp(**OPTIONS["low rank"])
    model.start_from_classifier(X)  # or it would move the weights later

    def directions() -> Tensor:
        assert model.gp.laplace.directions is not None
        return model.gp.laplace.directions.clone()

    drawn = directions()
    model.fit_covariance(iter([X]))  # can be gone through once: nothing is looked at before
    assert torch.equal(directions(), drawn)
    model.fit_covariance(X)  # sums along the directions that there are would lose their meaning
    assert torch.equal(directions(), drawn)
    with torch.no_grad():
        model.gp.beta += 1
    model.fit_covariance(X)
    phi = model.gp.features(model.model[:-1](X)).detach()  # type: ignore[index]
    gram = phi.T @ phi
    caught = directions().T @ gram @ directions()
    assert float(caught.trace()) > 0.999 * float(torch.linalg.eigvalsh(gram)[-4:].sum())


@pytest.mark.parametrize("name", ["classes", "low rank"])
def test_a_model_with_a_covariance_for_each_class_answers_as_any(name: str) -> None:
    model = sngp(**OPTIONS[name])
    model.fit_covariance(X)
    prediction = model.predict(X)
    variance = prediction.logit_variance
    assert variance.shape == (97, 5)
    assert float((variance[:, 0] - variance[:, 1]).abs().max()) > 0
    model.eval()
    torch.testing.assert_close(model(X).softmax(1), prediction.probs)
    sampled = model.predict(X, posterior="monte_carlo", num_samples=2000)
    torch.testing.assert_close(sampled.probs, prediction.probs, rtol=0, atol=0.05)
    again = sngp(**OPTIONS[name])
    again.load_state_dict(model.state_dict())
    assert again.covariance_state == "fitted"
    assert torch.equal(again.predict(X).probs, prediction.probs)


def test_low_ranks_add_up_along_the_same_directions_alone() -> None:
    model = sngp(**OPTIONS["low rank"])
    unaimed = CovarianceSums(copy.deepcopy(model)).update(X)
    sums = CovarianceSums(model).update(X)
    model.prepare_covariance(X)
    for verb in (sums.finish, lambda: sums.update(X)):
        with pytest.raises(CovarianceError, match="chosen anew since these sums were begun"):
            verb()
    with pytest.raises(CovarianceError, match="made with directions="):
        CovarianceSums(model).merge(unaimed)


def test_workers_that_decide_the_kernel_scale_by_themselves_do_not_add_up() -> None:
    model = sngp(kernel_scale="median")
    parts = [CovarianceSums(copy.deepcopy(model)).update(share) for share in (X[:50], X[50:])]
    with pytest.raises(CovarianceError, match=r"kernel scale that each decided.*prepare_covariance\(data\) once"):
        parts[0].merge(parts[1])
    model.prepare_covariance(X)
    parts = [CovarianceSums(copy.deepcopy(model)).update(share) for share in (X[:50], X[50:])]
    assert_equal(finished(parts[0].merge(parts[1]), model), whole(model))


def test_prepared_weights_are_those_of_the_pass() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model = SNGP(network, norm_bound=0.9, num_inducing=16)
    with torch.no_grad():
        network[0].weight.fill_(1.0)  # a loop of one's own, that ended with a step
    alone = copy.deepcopy(model)
    x = X.float()
    with pytest.warns(SpectralBoundWarning):
        model.prepare_covariance(x)
    CovarianceSums(model).update(x).finish()
    with pytest.warns(SpectralBoundWarning):
        alone.fit_covariance(x)
    assert float(torch.linalg.matrix_norm(network[0].weight.detach(), 2)) < 0.91
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)


def test_sums_without_a_model_say_what_to_do(model: SNGP) -> None:
    sums = pickle.loads(pickle.dumps(CovarianceSums(model).update(X)))
    assert sums.count == len(X)
    for verb in (lambda: sums.update(X), lambda: sums.downdate(X), sums.finish):
        with pytest.raises(CovarianceError, match=r"CovarianceSums\(model\).merge\(sums\)"):
            verb()


def test_only_an_sngp_with_an_exact_covariance_has_sums() -> None:
    with pytest.raises(TypeError, match=r"model is a Deterministic: expected a hesitant\.SNGP"):
        CovarianceSums(Deterministic(nn.Linear(2, 2)))  # type: ignore[arg-type]
    with pytest.raises(CovarianceError, match=r"momentum=0\.9.*momentum=None"):
        CovarianceSums(sngp(momentum=0.9))
    with pytest.raises(CovarianceError, match="not fitted"):
        CovarianceSums.fitted(sngp())
    with pytest.raises(TypeError, match="other is a bytes: expected CovarianceSums"):
        CovarianceSums(sngp()).merge(b"")  # type: ignore[arg-type]


# ---------------------------------------------------------------- the neighbours' sample


def test_a_merged_sample_is_uniform_whatever_the_split() -> None:
    model = sngp(ood_score="knn")
    assert model.neighbors is not None
    model.neighbors.max_inputs = 10
    known, times = normalized(model, X), torch.zeros(len(X))
    for seed in range(100):
        order = torch.randperm(len(X), generator=seeded(seed))
        window = CovarianceSums(model, seed=5 * seed)
        days = [
            CovarianceSums(model, seed=5 * seed + i).update(x) for i, x in enumerate(X[order].split([60, 7, 30]), 1)
        ]
        for day in days:
            window.merge(day)
        window.unmerge(days[0]).merge(days[0])  # out of the window, and in again
        window.downdate(X[:20]).finish()
        found = torch.cdist(model.neighbors.inputs, known).argmin(1)
        assert len(found) <= 10
        times[found] += 1
    assert times[:20].sum() == 0
    expected = times[20:].mean()
    assert 4 < expected * 77 / 100 <= 10
    assert float(((times[20:] - expected) ** 2 / expected).sum()) < 77 + 4 * (2 * 77) ** 0.5  # chi squared


def test_sums_over_different_data_draw_differently() -> None:
    model = sngp(ood_score="knn")
    one, other, again = (CovarianceSums(model).update(x) for x in (X[:40], X[40:80], X[:40]))
    keys = [sums._sample.kept()[1] for sums in (one, other, again)]  # type: ignore[union-attr]
    assert torch.equal(keys[0], keys[2])
    assert not torch.isin(keys[0], keys[1]).any()


def test_the_sample_of_a_fitted_model_goes_on_as_one() -> None:
    model = sngp(ood_score="knn")
    assert model.neighbors is not None
    model.neighbors.max_inputs = 10
    known, times = normalized(model, X), torch.zeros(len(X))
    for seed in range(100):
        CovarianceSums(model, seed=seed).update(X[:60]).finish()
        CovarianceSums.fitted(model, seed=1000 + seed).update(X[60:]).finish()
        assert len(model.neighbors.inputs) == 10
        times[torch.cdist(model.neighbors.inputs, known).argmin(1)] += 1
    expected = times.mean()
    assert float(((times - expected) ** 2 / expected).sum()) < 97 + 4 * (2 * 97) ** 0.5


# ---------------------------------------------------------------- bytes


def test_bytes_that_are_no_sums_are_refused(model: SNGP, tmp_path: Path) -> None:
    content = CovarianceSums(model).update(X).to_bytes()
    planted = tmp_path / "planted"

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (planted,)

    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    bad = [
        b"", b"nothing", content[:-100], content[: len(content) // 2], bytes(flipped), pickle.dumps(Payload()),
        content.replace(b'"hesitant.CovarianceSums": 1', b'"hesitant.CovarianceSums": 2'),
        content.replace(b'"count": 97', b'"count": -7'),
    ]  # fmt: skip
    for one in bad:
        with pytest.raises(ValueError, match="content is no CovarianceSums, or damaged"):
            CovarianceSums.from_bytes(one)
    with pytest.raises(TypeError, match="content is a str"):
        CovarianceSums.from_bytes("sums")  # type: ignore[arg-type]
    assert not planted.exists()


def test_bytes_hold_half_of_the_square() -> None:
    model = sngp(num_inducing=256)
    assert len(CovarianceSums(model).update(X).to_bytes()) < 4 * 256 * 257 + 2000

"""Several gloo workers give what one worker gives. They are started once, and do everything."""

import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.leaving import leave
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, WeightedRandomSampler

import hesitant
from hesitant import SNGP
from hesitant.nn.models import MLP

pytestmark = pytest.mark.slow
WORKERS = 3  # which share neither of these sizes out evenly, and of two some get nothing
SIZES = (1, 2, 61)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(61, 4, generator=generator(1))
Y = (X[:, 0] > 0).long()


def sngp(model: nn.Module | None = None, **options: Any) -> SNGP:
    model = model or MLP(4, 2, hidden=(8,), dropout=0.1, generator=generator())
    return SNGP(model, **{"num_inducing": 16, "generator": generator(), "kernel_scale": 2.0, **options})


def normed() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def forms(size: int, distributed: bool) -> dict[str, Any]:
    """The data in all the forms that are dealt out among workers."""
    x, y = X[:size], Y[:size]
    dataset = TensorDataset(x, y)
    answer: dict[str, Any] = {
        "tensor": x,
        "several tensors": (x,),
        "dict": {"x": x, "labels": y},
        "Dataset": dataset,
        "DataLoader": DataLoader(dataset, batch_size=4),
        "shuffled": DataLoader(dataset, batch_size=4, shuffle=True, generator=generator(3)),
        "drop_last": DataLoader(dataset, batch_size=4, drop_last=True),
    }
    if distributed:
        answer["DistributedSampler"] = DataLoader(dataset, batch_size=4, sampler=DistributedSampler(dataset))
    return answer


def covariances(distributed: bool) -> dict[str, Tensor]:
    answer: dict[str, Tensor] = {}
    for size in SIZES:
        for name, data in forms(size, distributed).items():
            method = sngp()
            method.fit_covariance(data, batch_size=5)
            assert float(method.gp.laplace.num_seen) == size
            answer[f"{name} {size}"] = method.gp.precision
    method = sngp(kernel_scale="median")
    method.fit_covariance(X[:2])
    answer["median"] = method.gp.precision
    method = sngp()
    method.fit_covariance(TensorDataset(X, Y), batch_size=5, num_inputs=20)
    answer["sample"] = method.gp.precision
    return answer


def neighbors() -> dict[str, Tensor]:
    """What is kept of so many inputs where there is room for so many."""
    answer: dict[str, Tensor] = {}
    for size, room in ((2, 50), (61, 50_000), (61, 20)):
        method = sngp(ood_score="knn")
        assert method.neighbors is not None
        method.neighbors.max_inputs = room
        method.fit_covariance(X[:size], batch_size=5)
        answer[f"{room} of {size}"] = method.neighbors.inputs
    return answer


def steps(model: nn.Module, rank: int, workers: int, count: int = 4) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    model.train()
    for step in range(count):
        index = torch.randint(0, 61, (8 * workers,), generator=generator(step))[rank::workers]
        optimizer.zero_grad()
        F.cross_entropy(model(X[index]), Y[index]).backward()
        optimizer.step()


def state(method: SNGP) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}


def failure(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def work(rank: int, workers: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29871", "ACCELERATE_USE_CPU": "true"}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers, timeout=timedelta(seconds=60)
    )
    answer: dict[str, Any] = {"covariances": covariances(distributed=True), "neighbors": neighbors()}

    method = sngp(normed(), norm_bound=0.9)
    parallel = DistributedDataParallel(method)
    method.gp.laplace.data_precision.fill_(rank)
    steps(parallel, rank, workers)
    answer["broadcast"] = float(method.gp.laplace.data_precision[0, 0]) != rank
    method.fit_covariance(TensorDataset(X, Y), batch_size=8)
    answer["parallel"] = state(method)

    running = sngp(momentum=0.9)
    steps(DistributedDataParallel(running), rank, workers)
    answer["running"] = state(running)

    bad = X.clone()
    bad[workers - 1] = float("nan")  # on the last worker alone
    answer["NaN"] = failure(lambda: method.fit_covariance(bad)), method.covariance_state
    own = DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler(torch.ones(61), 61))
    answer["own sampler"] = failure(lambda: method.fit_covariance(own))
    answer["empty"] = failure(lambda: method.fit_covariance(TensorDataset(X[:0], Y[:0])))

    for name, options in {"fit": {}, "accumulated": {"gradient_accumulation_steps": 2}}.items():
        fitted = sngp(normed(), norm_bound=0.9)
        history = hesitant.fit(
            fitted,
            TensorDataset(X, Y),
            epochs=4,
            batch_size=8,
            progress=False,
            validation_data=TensorDataset(X + 0.5, Y),
            patience=2,
            checkpoint=Path(folder) / name,
            **options,  # type: ignore[arg-type]
        )
        answer[name] = state(fitted), history
    options: dict[str, Any] = {"batch_size": 8, "progress": False, "scheduler": None}
    whole, half, resumed = sngp(), sngp(), sngp()  # with dropout
    hesitant.fit(whole, TensorDataset(X, Y), epochs=3, **options)
    hesitant.fit(half, TensorDataset(X, Y), epochs=1, checkpoint=Path(folder) / "resumed", **options)
    hesitant.fit(resumed, TensorDataset(X, Y), epochs=3, checkpoint=Path(folder) / "resumed", **options)
    answer["whole"], answer["resumed"] = state(whole), state(resumed)
    plain = normed()
    answer["plain"] = hesitant.fit(
        plain,
        TensorDataset(X, Y),
        epochs=2,
        batch_size=8,
        progress=False,
        device="cpu",
        validation_data=TensorDataset(X, Y),
    )
    rates: list[float] = []
    register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    dropping = DataLoader(TensorDataset(X, Y), batch_size=8, drop_last=True)  # 7 batches: 2 for each of 3 workers
    hesitant.fit(normed(), dropping, epochs=3, learning_rate=1.0, progress=False, device="cpu")
    answer["rates"] = rates
    torch.save(answer, f"{folder}/{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("workers"))
    torch.multiprocessing.spawn(work, args=(WORKERS, folder), nprocs=WORKERS)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(WORKERS)]


def test_the_covariance_is_that_of_one_worker(answers: list[dict[str, Any]]) -> None:
    expected = covariances(distributed=False)
    for answer in answers:
        for name, precision in answer["covariances"].items():
            one = expected[name.replace("DistributedSampler", "Dataset")]
            assert (precision - one).abs().max() <= 1e-6 * one.abs().max(), name


def test_the_neighbours_are_those_of_all_workers(answers: list[dict[str, Any]]) -> None:
    alone = neighbors()
    for answer in answers:
        for name, kept in answer["neighbors"].items():
            assert torch.equal(kept, answers[0]["neighbors"][name])  # the same on every worker
            nearest = torch.cdist(kept, alone["50000 of 61"]).min(1)
            assert float(nearest.values.max()) < 1e-3  # of the training data
            assert len(kept) == min(*map(int, name.split(" of ")))
            assert len(nearest.indices.unique()) == len(kept) or name == "50000 of 61"
        shared = torch.cdist(alone["50000 of 61"], answer["neighbors"]["50000 of 61"]).amin(1)
        assert float(shared.max()) < 1e-3  # all of it


def assert_alike(states: list[dict[str, Tensor]]) -> None:
    for other in states[1:]:
        for name, tensor in states[0].items():
            assert torch.equal(tensor, other[name]), name


def refitted(saved: dict[str, Tensor]) -> SNGP:
    method = sngp(normed(), norm_bound=None)
    method.load_state_dict({name: t for name, t in saved.items() if "spectral" not in name})
    assert method.covariance_state == "fitted"
    method.fit_covariance(TensorDataset(X, Y))
    return method


def test_after_parallel_training_the_covariance_is_that_of_the_weights(answers: list[dict[str, Any]]) -> None:
    assert_alike([answer["parallel"] for answer in answers])
    assert not any(answer["broadcast"] for answer in answers)
    saved = answers[0]["parallel"]
    torch.testing.assert_close(
        refitted(saved).gp.laplace.data_precision, saved["model.2.laplace.data_precision"], rtol=1e-6, atol=1e-6
    )


def test_running_covariances_agree(answers: list[dict[str, Any]]) -> None:
    assert_alike([answer["running"] for answer in answers])
    seen = float(answers[0]["running"]["model.classifier.laplace.num_seen"])
    assert seen == pytest.approx(8 * len(answers) * (1 - 0.9**4) / (1 - 0.9))


def test_a_failure_of_one_worker_is_everyones(answers: list[dict[str, Any]]) -> None:
    for rank, answer in enumerate(answers):
        message, left = answer["NaN"]
        assert ("NaN or Inf" if rank == len(answers) - 1 else "1 other workers failed") in message
        assert left in ("fitted", "stale")  # as it was; the weights are the first worker's by then
        assert "WeightedRandomSampler" in answer["own sampler"]
        assert "at least one input" in answer["empty"]


def test_fit_gives_the_covariance_of_its_own_weights(answers: list[dict[str, Any]]) -> None:
    for name in ("fit", "accumulated"):
        assert_alike([answer[name][0] for answer in answers])
        saved, history = answers[0][name]
        batches = -(-8 // len(answers))  # of an epoch of 61 inputs, of each worker
        assert int(saved["model.1.num_batches_tracked"]) == history.best_epoch * batches
        assert all(answer[name][1].train_loss == history.train_loss for answer in answers)
        assert all(answer[name][1].validation_nll == history.validation_nll for answer in answers)
        torch.testing.assert_close(
            refitted(saved).gp.laplace.data_precision, saved["model.2.laplace.data_precision"], rtol=1e-6, atol=1e-6
        )


def test_a_resumed_run_ends_as_an_unbroken_one(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert_alike([answer["whole"], answer["resumed"]])


def test_the_rate_falls_over_the_steps_of_a_worker(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert answer["rates"] == pytest.approx([1, 0.9865, 0.8431, 0.5868, 0.3020, 0.0823], abs=1e-4)


def test_a_plain_model_is_validated_alike(answers: list[dict[str, Any]]) -> None:
    assert all(answer["plain"].validation_nll == answers[0]["plain"].validation_nll for answer in answers)
    assert len(answers[0]["plain"].validation_nll) == 2

"""What the callbacks share: nothing that a run draws depends on a fit, and only what has moved is fitted again."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.integrations.tiny_lightning import TRAIN, Classifier, X, Y, loader
from torch.nn import functional as F
from torch.utils.data import Dataset

from hesitant import SNGP, DeepEnsemble
from hesitant.integrations.covariance_fits import CovarianceFits, keep_out_of_broadcasts, sngps


class Drawing(Dataset[Any]):
    """Augments as data do: by whatever global generator is at hand."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, row: int) -> Any:
        noise = torch.rand(1) + random.random() + np.random.rand()
        return X[row] + 1e-3 * noise.float(), int(Y[row])


def draws() -> list[float]:
    return [float(torch.rand(1)), random.random(), float(np.random.rand())]


def test_global_generators_are_as_they_were() -> None:
    answers = []
    for fits in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        module = Classifier()
        torch.manual_seed(1)
        if fits:
            each = CovarianceFits(None, None, None, 0)
            each.begin(module, loader(Drawing()))
            each.fit(module, loader(Drawing()))
        answers.append(draws())
    assert answers[0] == answers[1]


def test_what_has_not_moved_is_not_fitted_again() -> None:
    seen: list[int] = []

    class Counted(Drawing):
        def __getitem__(self, row: int) -> Any:
            seen.append(row)
            return TRAIN[row]

    fits, module = CovarianceFits(None, None, None, 0), Classifier()
    for _ in range(3):
        fits.fit(module, loader(Counted()))
    first = len(seen)
    assert sorted(set(seen)) == list(range(50))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    F.cross_entropy(module.method.train()(X), Y).backward()
    optimizer.step()
    fits.fit(module, loader(Counted()))
    assert len(seen) == first + 50  # a classifier that was started from is not asked again


def test_what_is_fitted_in_inference_mode_can_be_trained() -> None:
    fits, module = CovarianceFits(None, None, None, 0), Classifier()
    with torch.inference_mode():
        fits.fit(module, loader())
    F.cross_entropy(module.method.train()(X), Y).backward()
    torch.optim.AdamW(module.parameters()).step()
    F.cross_entropy(module.method(X), Y).backward()


def test_every_sngp_is_found_wherever_it_is() -> None:
    ensemble = DeepEnsemble([Classifier().method, Classifier().method])
    assert len(sngps(torch.nn.ModuleList([ensemble, Classifier()]))) == 3
    with pytest.raises(ValueError, match="Linear holds no SNGP"):
        sngps(torch.nn.Linear(2, 2))


def test_ddp_is_told_of_every_sngp() -> None:
    module = Classifier()
    keep_out_of_broadcasts(module)
    ignored: Any = module._ddp_params_and_buffers_to_ignore
    buffers = {name for name, _ in module.named_buffers() if "laplace" in name}
    assert buffers
    assert buffers <= set(ignored)
    method: SNGP = module.method
    before = set(method._ddp_params_and_buffers_to_ignore)
    keep_out_of_broadcasts(method)
    assert set(method._ddp_params_and_buffers_to_ignore) == before

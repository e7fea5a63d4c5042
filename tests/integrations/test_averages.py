"""Averages of models in own loops, torch's AveragedModel and timm's ModelEmaV3: each is a model of its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.integrations.tiny_lightning import TEST, TRAIN, Classifier, X, Y, network
from timm.utils import ModelEmaV3
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

from hesitant import SNGP
from hesitant.evaluation import nll
from hesitant.nn import CovarianceError

AVERAGES: dict[str, tuple[Callable[[SNGP], Any], Callable[[Any, SNGP], None]]] = {
    "SWA": (lambda m: AveragedModel(m), lambda average, m: average.update_parameters(m)),
    "EMA with buffers": (
        lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
        lambda average, m: average.update_parameters(m),
    ),
    "timm": (lambda m: ModelEmaV3(m, decay=0.9), lambda average, m: average.update(m)),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_is_never_silently_stale_and_is_fitted_by_a_line(name: str) -> None:
    make, update = AVERAGES[name]
    method: SNGP = Classifier(network(drop=0.0)).method
    average = make(method)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2, fused=True)
    for step in range(20):
        method.train()
        optimizer.zero_grad()
        F.cross_entropy(method(X), Y).backward()
        optimizer.step()
        update(average, method)
        if step == 10:
            method.fit_covariance(TRAIN)  # in the middle, as a loop that evaluates does
    averaged: SNGP = average.module.eval()
    if name == "SWA":
        update_bn(DataLoader(TRAIN, batch_size=10), average)
    assert averaged.covariance_state != "fitted"
    with pytest.raises(CovarianceError, match="fit_covariance"):
        averaged.predict(TEST)
    averaged.fit_covariance(TRAIN)
    assert averaged.covariance_state == "fitted"
    with torch.no_grad():
        answered = average.eval()(TEST.tensors[0]).softmax(-1)
    torch.testing.assert_close(answered, averaged.predict(TEST).probs)
    method.fit_covariance(TRAIN)
    assert averaged.covariance_state == "fitted"  # the two have nothing in common
    assert nll(averaged.predict(TEST)) != nll(method.predict(TEST))
    update(average, method)
    assert averaged.covariance_state == "stale"

"""What one worker does; test_sngp_workers.py has several."""

import pytest
import torch
from torch import nn

from hesitant.methods.gaussian_head.workers import several_workers, share_weights, together


def test_one_worker_keeps_its_weights() -> None:
    layer = nn.BatchNorm1d(2)
    layer.running_mean.fill_(3.0)
    share_weights(layer)
    assert layer.running_mean.tolist() == [3.0, 3.0]
    assert not several_workers()


def test_one_worker_raises_its_own_failure() -> None:
    with together(torch.device("cpu")):
        pass
    with pytest.raises(KeyError, match="mine"), together(torch.device("cpu")):
        raise KeyError("mine")

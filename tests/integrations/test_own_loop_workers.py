"""The loop on Accelerate that the docs show, in two workers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integrations.running import assert_equal_states
from tests.integrations.workers import in_workers
from torch import nn

from hesitant import SNGP
from hesitant.data import digits


@pytest.mark.slow
def test_its_workers_have_one_model_fitted_to_all_data_and_one_result(tmp_path: Path) -> None:
    first, second = in_workers("own_loop_worker.py", tmp_path)
    assert_equal_states(first["states"], second["states"])
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["accuracy"] > 0.8
    method = SNGP(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 8)), l2_penalty=1e-5)
    method.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    assert method.covariance_state == "fitted"
    told = method.gp.precision
    method.fit_covariance(digits(generator=torch.Generator().manual_seed(0)).train)
    torch.testing.assert_close(told, method.gp.precision, rtol=1e-6, atol=1e-6)

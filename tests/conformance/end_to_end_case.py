"""e2e_sngp_*: a small SNGP trained for some epochs, spectral norm, Gaussian process and optimizer together."""

import math
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant.nn import RandomFeatureGaussianProcess, SpectralNormalizer

from .activations import activation
from .case import Case
from .end_to_end_record import Recorded, recognises, recorded
from .spectral_dense_case import project

__all__ = ["recognises", "run"]


class Network(nn.Module):
    """The network that the recorded one is, with its weights loaded."""

    def __init__(self, case: Case, told: Recorded) -> None:
        super().__init__()
        self.act = activation(told.activation)
        self.input = _dense(case, "input").requires_grad_(False)
        self.dense = nn.ModuleList(_dense(case, f"dense{i}") for i in case.indices_of("init_dense", "_kernel"))
        decaying = told.momentum > 0
        self.gp = RandomFeatureGaussianProcess(
            told.width,
            told.units,
            num_inducing=told.num_inducing,
            momentum=told.momentum if decaying else 1.0,
            ridge_decay=decaying,
            l2_penalty=told.l2_penalty,
            mean_field_factor=case.meta("mean_field_factor"),
            generator=torch.Generator().manual_seed(0),
            dtype=case.dtype,
        )
        if case.unpatched:
            self.gp.feature_scale = float(np.float32(self.gp.feature_scale))
        loaded = {
            "beta": case.tensor("init_gp_beta"),
            "random_weight": case.tensor("init_gp_W").T,
            "random_phase": case.tensor("init_gp_b"),
            "output_bias": case.tensor("init_gp_output_bias"),
        }
        self.gp.load_state_dict({**self.gp.state_dict(), **loaded})
        self.normalizer = SpectralNormalizer(self, norm_bound=told.bound, warm_up_iterations=0, exclude=("gp",))
        for i in range(len(self.dense)):
            self.normalizer.set_vectors(f"dense.{i}", case.tensor(f"init_dense{i}_u")[0])
            case.ignore(f"init_dense{i}_v", "written over by the first half step, which takes u alone")

    def forward(self, x: Tensor) -> Tensor:
        return self.gp(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        h = self.input(x)
        for layer in self.dense:
            h = h + self.act(layer(h))
        return h


class KerasAdam(torch.optim.Optimizer):
    """Adam as tf_keras has it: epsilon outside the bias correction, whose constants passed through float32."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, beta1: float, beta2: float, epsilon: float) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            lr, beta1, beta2 = (float(np.float32(group[key])) for key in ("lr", "beta1", "beta2"))
            alpha = lr * math.sqrt(1 - beta2**self.steps) / (1 - beta1**self.steps)
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                gradient, m, v = parameter.grad, state["m"], state["v"]
                m += (gradient - m) * (1 - group["beta1"])
                v += (gradient.square() - v) * (1 - group["beta2"])
                parameter -= m * alpha / (v.sqrt() + group["epsilon"])


def run(case: Case) -> None:
    """Trains as recorded, and compares losses, weights, precision and predictions."""
    told = recorded(case)
    model = Network(case, told)
    optimizer, tolerance = _optimizer(case, model, told), told.tolerance
    x, y = case.tensor("x"), torch.from_numpy(case.array("y").astype(np.int64))

    losses = []
    for epoch in range(case.meta("epochs")):
        if epoch + 1 in told.resets:
            model.gp.reset_covariance()
        model.train()
        for inputs, targets in zip(x.split(told.sizes), y.split(told.sizes), strict=True):
            project(model.normalizer)
            loss = F.cross_entropy(model(inputs), targets) + model.gp.regularization_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        _compare_epoch(case, model, f"epoch{epoch}", tolerance)
    case.compare("losses", torch.stack(losses), tolerance)

    _compare_weights(case, model, tolerance)
    model.eval()
    x_test = case.tensor("x_test")
    with torch.no_grad():
        hidden = model.hidden(x_test)
        condition = float(torch.linalg.cond(model.gp.precision))
        case.compare("test_logits", model.gp.mean(hidden), tolerance)
        case.compare("test_cov", model.gp.covariance(hidden), max(tolerance, case.tolerances.covariance(condition)))
        logits = model(x_test)
        case.compare("test_mf_logits", logits, tolerance)
        case.compare("test_probs", torch.softmax(logits, dim=-1), tolerance)


def _dense(case: Case, name: str) -> nn.Linear:
    kernel, bias = case.tensor(f"init_{name}_kernel"), case.tensor(f"init_{name}_bias")
    layer = nn.Linear(*kernel.shape, dtype=case.dtype)
    layer.load_state_dict({"weight": kernel.T, "bias": bias})
    return layer


def _optimizer(case: Case, model: Network, recorded: Recorded) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recorded.optimizer == "SGD":
        return torch.optim.SGD(parameters, lr=recorded.optimizer_settings[0])
    return KerasAdam(parameters, *recorded.optimizer_settings)


def _compare_epoch(case: Case, model: Network, epoch: str, tolerance: float) -> None:
    case.compare(f"{epoch}_gp_beta", model.gp.beta, tolerance)
    case.compare(f"{epoch}_precision", model.gp.precision, max(tolerance, case.tolerances.precision))
    case.compare(f"{epoch}_dense0_u", model.normalizer.vectors()["dense.0"][0][None], tolerance)
    for i, layer in enumerate(model.dense):
        case.compare(f"{epoch}_dense{i}_kernel", layer.weight.T, tolerance)


def _compare_weights(case: Case, model: Network, tolerance: float) -> None:
    case.compare("final_gp_beta", model.gp.beta, tolerance)
    assert model.gp.random_weight is not None
    assert model.gp.random_phase is not None
    for key, frozen in (
        ("input_kernel", model.input.weight.T),
        ("input_bias", model.input.bias),
        ("gp_W", model.gp.random_weight.T),
        ("gp_b", model.gp.random_phase),
        ("gp_output_bias", model.gp.output_bias),
    ):
        case.compare(f"final_{key}", frozen, 0.0)
    for i, layer in enumerate(model.dense):
        u, v = model.normalizer.vectors()[f"dense.{i}"]
        assert v is not None
        for key, ours in (("kernel", layer.weight.T), ("bias", layer.bias), ("u", u[None]), ("v", v[None])):
            case.compare(f"final_dense{i}_{key}", ours, tolerance)

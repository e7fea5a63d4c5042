"""sn_dense_*: SpectralNormalization(Dense), call after call, through a training, and from zero."""

import re
import warnings

import torch
from torch import Tensor, nn

from hesitant.nn import SpectralBoundWarning, SpectralNormalizer

from .activations import Activation, activation
from .case import Case, CaseError
from .spectral_record import kind_of_dense
from .spectral_record import recognises_dense as recognises
from .tolerances import DERIVED_SIGMA

__all__ = ["recognises", "run"]

_LAYER = "dense"


def run(case: Case) -> None:
    """Compares the kind of record that it is."""
    kind = kind_of_dense(case)
    if kind == "zero kernel":
        _run_zero_kernel(case)
        return
    _run_build(case)
    if kind == "training":
        _run_sgd_trajectory(case)
    else:
        _run_calls(case)


class Dense(nn.Module):
    """A Keras Dense layer, and our normalizer on it."""

    def __init__(self, case: Case, kernel: Tensor, bias: Tensor, act: Activation) -> None:
        super().__init__()
        self.dense = nn.Linear(*kernel.shape, dtype=case.dtype)
        self.act = act
        with torch.no_grad():
            self.dense.weight.copy_(kernel.T)
            self.dense.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x))


def _start(
    case: Case, kernel: Tensor, u: Tensor, bias: "Tensor | None" = None, act: "Activation | None" = None
) -> tuple[Dense, SpectralNormalizer]:
    if kernel.ndim != 2 or u.shape != (1, kernel.shape[1]):
        raise CaseError(f"{case.path}: kernel {tuple(kernel.shape)} and u {tuple(u.shape)} do not fit each other.")
    model = Dense(case, kernel, torch.zeros(kernel.shape[1]) if bias is None else bias, act or activation(None))
    normalizer = SpectralNormalizer(
        model,
        norm_bound=case.meta("norm_multiplier"),
        power_iterations=case.meta("iteration", 1),
        warm_up_iterations=0,
    )
    normalizer.set_vectors(_LAYER, u[0])
    return model, normalizer


def project(normalizer: SpectralNormalizer) -> None:
    """Advances as each training call of the reference does: whether or not the weights have moved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralBoundWarning)  # the cases start far above their bound
        normalizer.project(force=True)


def _compare_state(case: Case, model: Dense, normalizer: SpectralNormalizer, moment: str) -> None:
    u, v = normalizer.vectors()[_LAYER]
    assert v is not None
    tolerance = case.tolerances.spectral_dense
    case.compare(f"kernel_{moment}", model.dense.weight.T, tolerance)
    case.compare(f"u_{moment}", u[None], tolerance)
    case.compare(f"v_{moment}", v[None], tolerance)


def _run_build(case: Case) -> None:
    """The power iteration that the reference's build() does by itself."""
    model, normalizer = _start(case, case.tensor("kernel_before_build"), case.tensor("u_before_build"))
    case.ignore("v_before_build", "written over by the first half step, which takes u alone")
    if not case.has("X"):  # a training has none
        _compare_sigma(case, normalizer, "before_build")
    project(normalizer)
    _compare_state(case, model, normalizer, "after_build")


def _compare_sigma(case: Case, normalizer: SpectralNormalizer, moment: str) -> None:
    case.compare(f"true_sigma_{moment}", normalizer.norms()[_LAYER], DERIVED_SIGMA)


def _run_calls(case: Case) -> None:
    tolerance = case.tolerances
    if case.meta("mode") not in ("eager", "tf.function"):
        raise CaseError(f"{case.path}: mode={case.meta('mode')!r} is not known: expected 'eager' or 'tf.function'.")
    kernel = case.tensor("kernel_after_build")
    if tuple(case.meta("kernel_shape")) != tuple(kernel.shape):
        raise CaseError(f"{case.path}: kernel_shape={case.meta('kernel_shape')}, kernels are {tuple(kernel.shape)}.")
    calls = [int(call) for call in case.array("calls")]
    if case.meta("calls") != calls or not calls:
        raise CaseError(f"{case.path}: calls={case.meta('calls')} in meta and {calls} in the arrays.")
    x, bias, act = case.tensor("x"), case.tensor("bias"), activation(case.meta("activation"))
    model, normalizer = _start(case, kernel, case.tensor("u_after_build"), bias, act)
    _compare_sigma(case, normalizer, "after_build")

    before = [tensor.clone() for tensor in (model.dense.weight, *_vectors(normalizer))]
    model.eval()
    with torch.no_grad():
        case.compare("y_inference_after_build", model(x), tolerance.spectral_dense)
    after = [model.dense.weight, *_vectors(normalizer)]
    unmoved = all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    case.expect("inference_leaves_kernel_and_uv", unmoved, "inference leaves kernel, u and v alone")

    model.train()
    for call in range(1, max(calls) + 1):
        project(normalizer)
        y = model(x)
        if call == 1:
            (y * case.tensor("cotangent")).sum().backward()
            case.compare("grad_kernel_1", model.dense.weight.grad.T, tolerance.spectral_dense_gradient)
            case.compare("grad_bias_1", model.dense.bias.grad, tolerance.spectral_dense_gradient)
        if call in calls:
            case.compare(f"y_{call}", y, tolerance.spectral_dense)
            _compare_state(case, model, normalizer, str(call))
            _compare_sigma(case, normalizer, str(call))


def _vectors(normalizer: SpectralNormalizer) -> list[Tensor]:
    return [vector for vector in normalizer.vectors()[_LAYER] if vector is not None]


def _run_sgd_trajectory(case: Case) -> None:
    tolerance = case.tolerances
    optimizer = re.fullmatch(r"SGD lr=([0-9.e+-]+)", case.meta("optimizer"))
    if optimizer is None:
        raise CaseError(f"{case.path}: optimizer={case.meta('optimizer')!r} is not known: expected 'SGD lr=...'.")
    if case.meta("loss") != "mean over all entries of squared error":
        raise CaseError(f"{case.path}: loss={case.meta('loss')!r} is not known.")
    inputs, targets = case.tensor("X"), case.tensor("Y")
    # Keras starts a bias at zero.
    model, normalizer = _start(case, case.tensor("kernel_after_build"), case.tensor("u_after_build"))
    sgd = torch.optim.SGD(model.parameters(), lr=float(optimizer[1]))
    recorded: dict[str, list[Tensor]] = {}
    for x, y in zip(inputs, targets, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpectralBoundWarning)
            normalizer.project()  # not forced: that it sees the optimizer's step is part of what is tested
        u, v = normalizer.vectors()[_LAYER]
        loss = (model(x) - y).square().mean()
        sgd.zero_grad()
        loss.backward()
        gradient = model.dense.weight.grad.T.clone()
        sgd.step()
        assert v is not None
        step = {
            "loss": loss.detach(),
            "grad_kernel": gradient,
            "u": u[None],
            "v": v[None],
            "kernel_after_step": model.dense.weight.detach().T,
            "bias_after_step": model.dense.bias.detach(),
        }
        for key, value in step.items():
            recorded.setdefault(key, []).append(value.clone())
    for key, values in recorded.items():
        gradient_like = key in ("grad_kernel", "bias_after_step", "loss")
        case.compare(
            key,
            torch.stack(values),
            tolerance.spectral_dense_gradient if gradient_like else tolerance.spectral_dense,
        )


def _run_zero_kernel(case: Case) -> None:
    """A kernel of zeros makes u and v zero for good, so that the layer is never normalised again."""
    if not case.meta("note").startswith("kernel built as zeros; then assigned 2*I; then one training call"):
        raise CaseError(f"{case.path}: note={case.meta('note')!r} tells another story than this runner knows.")
    kernel = case.tensor("kernel_after_call")
    model, normalizer = _start(case, torch.zeros_like(kernel), torch.ones(1, kernel.shape[1], dtype=case.dtype))
    project(normalizer)
    case.compare("u_after_build", normalizer.vectors()[_LAYER][0][None], 0.0)
    with torch.no_grad():
        model.dense.weight.copy_(2 * torch.eye(len(kernel)))
    project(normalizer)
    case.compare("u_after_call", normalizer.vectors()[_LAYER][0][None], 0.0)
    case.compare("kernel_after_call", model.dense.weight.T, 0.0)
    # The input is not stored: y = kernel says that it was the identity.
    case.compare("y", model(torch.eye(len(kernel), dtype=case.dtype)), 0.0)

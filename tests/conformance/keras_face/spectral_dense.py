"""sn_dense_*: SpectralNormalization(Dense), call after call, through a training, and from zero."""

import re
from functools import partial
from typing import Any

import numpy as np

import keras
from hesitant.keras import SpectralNormalization

from ..case import Case, CaseError
from ..spectral_record import kind_of_dense
from ..spectral_record import recognises_dense as recognises
from ..tolerances import DERIVED_SIGMA
from .numbers import activation, numpy_of

__all__ = ["recognises", "run"]


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


def _start(case: Case, kernel: np.ndarray, u: np.ndarray, act: Any = None) -> SpectralNormalization:
    if kernel.ndim != 2 or u.shape != (1, kernel.shape[1]):
        raise CaseError(f"{case.path}: kernel {kernel.shape} and u {u.shape} do not fit each other.")
    layer = SpectralNormalization(
        keras.layers.Dense(kernel.shape[1], activation=act, dtype=case.dtype_name),
        iteration=case.meta("iteration", 1),
        norm_multiplier=case.meta("norm_multiplier"),
        dtype=case.dtype_name,
    )
    layer.build((None, kernel.shape[0]))
    layer.layer.kernel.assign(kernel)
    layer.u.assign(u)
    return layer


def _compare_state(case: Case, layer: SpectralNormalization, moment: str) -> None:
    for name, variable in (("kernel", layer.layer.kernel), ("u", layer.u), ("v", layer.v)):
        case.compare(f"{name}_{moment}", numpy_of(variable), case.tolerances.spectral_dense)


def _compare_sigma(case: Case, layer: SpectralNormalization, moment: str) -> None:
    sigma = np.linalg.norm(numpy_of(layer.layer.kernel).astype(np.float64), 2)
    case.compare(f"true_sigma_{moment}", sigma, DERIVED_SIGMA)


def _run_build(case: Case) -> None:
    """The power iteration that the reference's build() does by itself."""
    layer = _start(case, case.numbers("kernel_before_build"), case.numbers("u_before_build"))
    case.ignore("v_before_build", "written over by the first half step, which takes u alone")
    if not case.has("X"):  # a training has none
        _compare_sigma(case, layer, "before_build")
    layer.project()
    _compare_state(case, layer, "after_build")


def _run_calls(case: Case) -> None:
    tolerance = case.tolerances
    if case.meta("mode") not in ("eager", "tf.function"):
        raise CaseError(f"{case.path}: mode={case.meta('mode')!r} is not known: expected 'eager' or 'tf.function'.")
    kernel = case.numbers("kernel_after_build")
    if tuple(case.meta("kernel_shape")) != kernel.shape:
        raise CaseError(f"{case.path}: kernel_shape={case.meta('kernel_shape')}, kernels are {kernel.shape}.")
    calls = [int(call) for call in case.array("calls")]
    if case.meta("calls") != calls or not calls:
        raise CaseError(f"{case.path}: calls={case.meta('calls')} in meta and {calls} in the arrays.")
    x = case.numbers("x")
    layer = _start(case, kernel, case.numbers("u_after_build"), activation(case.meta("activation")))
    layer.layer.bias.assign(case.numbers("bias"))
    _compare_sigma(case, layer, "after_build")

    before = [numpy_of(variable) for variable in layer.variables]
    case.compare("y_inference_after_build", numpy_of(layer(x, training=False)), tolerance.spectral_dense)
    unmoved = all(np.array_equal(old, numpy_of(new)) for old, new in zip(before, layer.variables, strict=True))
    case.expect("inference_leaves_kernel_and_uv", unmoved, "inference leaves kernel, u and v alone")

    for call in range(1, max(calls) + 1):
        layer.project()
        if call == 1:
            cotangent = case.numbers("cotangent")
            _, gradients = _gradients(layer.layer, partial(_product, layer, x, cotangent))
            for name, gradient in zip(("kernel", "bias"), gradients, strict=True):
                case.compare(f"grad_{name}_1", gradient, tolerance.spectral_dense_gradient)
        if call in calls:
            case.compare(f"y_{call}", numpy_of(layer(x, training=True)), tolerance.spectral_dense)
            _compare_state(case, layer, str(call))
            _compare_sigma(case, layer, str(call))


def _product(layer: SpectralNormalization, x: np.ndarray, cotangent: np.ndarray) -> Any:
    return keras.ops.sum(layer(x) * keras.ops.convert_to_tensor(cotangent))


def _gradients(layer: Any, loss: Any) -> tuple[float, list[np.ndarray]]:
    """Answers a loss and its gradients to kernel and bias, by the backend's own means."""
    variables = [layer.kernel, layer.bias]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        return float(value), [numpy_of(g) for g in tape.gradient(value, [v.value for v in variables])]
    if backend == "torch":
        import torch

        value = loss()
        found = torch.autograd.grad(value, [v.value for v in variables])
        return float(value.detach()), [numpy_of(g) for g in found]
    import jax

    def of(values: list[Any]) -> Any:
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return loss()

    value, found = jax.value_and_grad(of)([v.value for v in variables])
    return float(value), [numpy_of(g) for g in found]


def _run_sgd_trajectory(case: Case) -> None:
    optimizer = re.fullmatch(r"SGD lr=([0-9.e+-]+)", case.meta("optimizer"))
    if optimizer is None:
        raise CaseError(f"{case.path}: optimizer={case.meta('optimizer')!r} is not known: expected 'SGD lr=...'.")
    if case.meta("loss") != "mean over all entries of squared error":
        raise CaseError(f"{case.path}: loss={case.meta('loss')!r} is not known.")
    inputs, targets = case.numbers("X"), case.numbers("Y")
    layer = _start(case, case.numbers("kernel_after_build"), case.numbers("u_after_build"))
    dense = layer.layer
    sgd = keras.optimizers.SGD(float(optimizer[1]))
    told = _Told(dense.kernel)
    layer.project()  # the reference projects before a step, and Keras' constraint after it
    recorded: dict[str, list[np.ndarray]] = {}
    for x, y in zip(inputs, targets, strict=True):
        step: dict[str, Any] = {"u": numpy_of(layer.u), "v": numpy_of(layer.v)}

        def loss(x: np.ndarray = x, y: np.ndarray = y) -> Any:
            return keras.ops.mean(keras.ops.square(layer(x) - keras.ops.convert_to_tensor(y)))

        step["loss"], gradients = _gradients(dense, loss)
        step["grad_kernel"] = gradients[0]
        sgd.apply([keras.ops.convert_to_tensor(g) for g in gradients], [dense.kernel, dense.bias])
        step |= {"kernel_after_step": told.kernel, "bias_after_step": numpy_of(dense.bias)}
        for key, value in step.items():
            recorded.setdefault(key, []).append(np.asarray(value))
    for key, values in recorded.items():
        of_gradient = key in ("grad_kernel", "bias_after_step", "loss")
        tolerance = case.tolerances.spectral_dense_gradient if of_gradient else case.tolerances.spectral_dense
        case.compare(key, np.stack(values), tolerance)


class _Told:
    """Notes the kernel as the optimizer left it, before the constraint that it was wrapped around."""

    def __init__(self, variable: Any) -> None:
        self.kernel: np.ndarray | None = None
        self._constraint = variable.constraint
        variable.constraint = self

    def __call__(self, kernel: Any) -> Any:
        self.kernel = numpy_of(kernel)
        return self._constraint(kernel)


def _run_zero_kernel(case: Case) -> None:
    """A kernel of zeros makes u and v zero for good, so that the layer is never normalised again."""
    if not case.meta("note").startswith("kernel built as zeros; then assigned 2*I; then one training call"):
        raise CaseError(f"{case.path}: note={case.meta('note')!r} tells another story than this runner knows.")
    kernel = case.numbers("kernel_after_call")
    layer = _start(case, np.zeros_like(kernel), np.ones((1, kernel.shape[1]), dtype=kernel.dtype))
    layer.project()
    case.compare("u_after_build", numpy_of(layer.u), 0.0)
    identity = np.eye(len(kernel), dtype=kernel.dtype)
    layer.layer.kernel.assign(2 * identity)
    layer.project()
    case.compare("u_after_call", numpy_of(layer.u), 0.0)
    case.compare("kernel_after_call", numpy_of(layer.layer.kernel), 0.0)
    # The input is not stored: y = kernel says that it was the identity.
    case.compare("y", numpy_of(layer(identity)), 0.0)

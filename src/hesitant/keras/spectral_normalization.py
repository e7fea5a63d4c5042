"""Bounds the spectral norm of a layer's kernel while it trains, as a constraint that every Keras optimizer applies."""

import functools
from typing import Any, Literal

import keras
from hesitant.keras.layer_operator import Convolution, Matrix
from hesitant.keras.torch_optimizers import project_after_steps_on
from keras import ops


@keras.saving.register_keras_serializable(package="hesitant")
class SpectralNormalization(keras.layers.Wrapper):
    """Keeps the spectral norm of a layer's kernel at most ``norm_multiplier``: ``W <- W min(1, c / sigma(W))``.

    Sigma is that of a power iteration, carried on with each step and nothing differentiated through it. The projection
    is the kernel's constraint, so it follows each step of the optimizer, on JAX within its compiled step; a kernel that
    this layer builds starts within the bound, one that is there already is left alone until it trains. A call changes
    no weight, in training or not.

    An optimizer that knows no constraints projects nothing: those of ``torch.optim`` are followed by the projection as
    well; for others, as optax, call :meth:`project` after each step.

    On JAX the two singular vectors count as trainable, with gradients of zero: there, only what is trainable may change
    in an optimizer's step.

    Source: Liu et al., "Simple and Principled Uncertainty Estimation with Deterministic Deep Learning via Distance
    Awareness", NeurIPS 2020, section 3.2.

    Args:
        layer: A layer with a ``kernel``. All axes of the kernel but the last are taken as one.
        iteration: Power iterations in each step.
        norm_multiplier: The bound c.
        **kwargs: Of a Keras layer.

    Raises:
        ValueError: An argument is out of its range, or, when it is built, the layer has no kernel.
    """

    def __init__(self, layer: Any, iteration: int = 1, norm_multiplier: float = 0.95, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        if iteration < 1:
            raise ValueError(f"iteration={iteration} must be at least 1.")
        if not norm_multiplier > 0:
            raise ValueError(f"norm_multiplier={norm_multiplier} must be a positive number.")
        self.iteration, self.norm_multiplier = iteration, norm_multiplier
        self.has_projected = False  # a kernel that was there already is left alone until it trains

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the layer if it is not, bounds its kernel, and makes the singular vectors."""
        if not self.layer.built:
            self._build_within_the_bound(input_shape)
        kernel = self._kernel()
        self.operator = self._operator(tuple(kernel.shape), input_shape)
        exact = "float64" if keras.backend.standardize_dtype(kernel.dtype) == "float64" else "float32"
        options: dict[str, Any] = {
            "dtype": exact,
            "autocast": False,
            "trainable": keras.backend.backend() == "jax",
        }
        shapes = self.operator.output_shape, self.operator.input_shape

        @functools.cache  # made when Keras fills the weights, and for both of them
        def warm() -> tuple[Any, Any, Any]:
            wide = ops.stop_gradient(ops.cast(ops.convert_to_tensor(kernel), exact))
            return self._power_iteration(wide, self._start(wide), self.operator.warm_up)

        self.u, self.v = (
            self.add_weight(
                name=name, shape=shape, initializer=lambda shape, dtype=None, place=place: warm()[place], **options
            )
            for place, (name, shape) in enumerate(zip("uv", shapes, strict=True))
        )
        kernel.constraint = Projection(self, kernel.constraint)
        if keras.backend.backend() == "torch":
            project_after_steps_on(kernel.value, self)
        self.built = True

    def call(self, inputs: Any, **kwargs: Any) -> Any:
        """Answers what the layer answers."""
        return self.layer(inputs, **kwargs)

    def project(self) -> None:
        """Advances the power iteration and bounds the kernel, as a step of a Keras optimizer does by itself."""
        kernel = self._kernel()
        kernel.assign(kernel.constraint(kernel))

    def bounded(self, kernel: Any) -> Any:
        """Answers the bounded kernel, and advances the singular vectors by it."""
        self.has_projected = True
        dtype = self.u.dtype
        wide = ops.stop_gradient(ops.cast(ops.convert_to_tensor(kernel), dtype))
        u, v, sigma = self._power_iteration(wide, ops.convert_to_tensor(self.u), self.iteration)
        self.u.assign(u)
        self.v.assign(v)
        return ops.cast(wide * self._shrinking(sigma), kernel.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Answers the shape of what the layer answers."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Answers the constructor's arguments."""
        own = {"iteration": self.iteration, "norm_multiplier": self.norm_multiplier}
        return {**super().get_config(), **own}

    # ---------------------------------------------------------------- inside

    def _operator(self, kernel_shape: tuple[int, ...], input_shape: tuple[int | None, ...]) -> Matrix | Convolution:
        return Matrix(kernel_shape)

    def _kernel(self) -> Any:
        kernel = getattr(self.layer, "kernel", None)
        if not isinstance(kernel, keras.Variable):
            raise ValueError(
                f"layer is a {type(self.layer).__name__} whose kernel is {type(kernel).__name__}: expected a layer"
                " with a kernel to bound, such as Dense, EinsumDense or Conv2D, and neither quantized nor with LoRA."
            )
        return kernel

    def _build_within_the_bound(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the layer with an initializer that draws as its own does, and bounds what was drawn."""
        draw = getattr(self.layer, "kernel_initializer", None)
        if draw is None:
            self.layer.build(input_shape)
            return

        def drawn_within(shape: tuple[int, ...], dtype: Any = None) -> Any:
            kernel = draw(shape, dtype=dtype)
            self.operator = self._operator(tuple(shape), input_shape)
            wide = ops.cast(kernel, "float32" if dtype in ("float16", "bfloat16") else dtype)
            sigma = self._power_iteration(wide, self._start(wide), self.operator.warm_up)[2]
            return ops.cast(wide * self._shrinking(sigma), dtype)

        self.layer.kernel_initializer = drawn_within
        try:
            self.layer.build(input_shape)
        finally:
            self.layer.kernel_initializer = draw
        self.layer.built = True

    def _start(self, kernel: Any) -> Any:
        # The same for the same shapes: what matters is that no direction is left out.
        return keras.random.normal(self.operator.output_shape, dtype=kernel.dtype, seed=0)

    def _power_iteration(self, kernel: Any, u: Any, iterations: int) -> tuple[Any, Any, Any]:
        for _ in range(iterations):
            v = _unit(self.operator.adjoint(kernel, u))
            image = self.operator.forward(kernel, v)
            u = _unit(image)
        return u, v, ops.sum(image * u)

    def _shrinking(self, sigma: Any) -> Any:
        within = sigma <= self.norm_multiplier
        return ops.where(within, ops.ones_like(sigma), self.norm_multiplier / ops.where(within, 1.0, sigma))


@keras.saving.register_keras_serializable(package="hesitant")
class SpectralNormalizationConv2D(SpectralNormalization):
    """Keeps the norm of a two-dimensional convolution at most ``norm_multiplier``, at the input size it is built for.

    The norm is that of the convolution as it is applied, with its stride, padding, dilation and groups; that of the
    reshaped kernel, which `SpectralNormalization` bounds, is off by up to the kernel's height and width.

    Args:
        layer: A ``keras.layers.Conv2D``.
        iteration: Power iterations in each step.
        norm_multiplier: The bound.
        norm: ``"operator"``, or ``"same_padding"``: the reference's way, which takes each convolution for one with
            padding ``"same"`` and without dilation.
        **kwargs: Of a Keras layer.

    Raises:
        TypeError: The layer is no Conv2D.
        ValueError: An argument is out of its range, or, when it is built, height or width are not known.
    """

    def __init__(
        self,
        layer: Any,
        iteration: int = 1,
        norm_multiplier: float = 0.95,
        norm: Literal["operator", "same_padding"] = "operator",
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, iteration, norm_multiplier, **kwargs)
        if not isinstance(layer, keras.layers.Conv2D):
            raise TypeError(
                f"layer is a {type(layer).__name__}: expected a keras.layers.Conv2D; for others SpectralNormalization."
            )
        if norm not in ("operator", "same_padding"):
            raise ValueError(f"norm={norm!r} is not known: expected 'operator' or 'same_padding'.")
        self.norm = norm

    def get_config(self) -> dict[str, Any]:
        """Answers the constructor's arguments."""
        return {**super().get_config(), "norm": self.norm}

    def _operator(self, kernel_shape: tuple[int, ...], input_shape: tuple[int | None, ...]) -> Convolution:
        first = self.layer.data_format == "channels_first"
        height, width = input_shape[2:4] if first else input_shape[1:3]
        if height is None or width is None:
            raise ValueError(
                f"input_shape={tuple(input_shape)}: the norm of a convolution depends on the size of its input. Build"
                " the model at the size that it trains at, e.g. with keras.Input((32, 32, 3))."
            )
        as_applied = self.norm == "operator"
        return Convolution(
            size=(height, width),
            channels=(kernel_shape[2] * self.layer.groups, kernel_shape[3]),
            kernel_size=(kernel_shape[0], kernel_shape[1]),
            strides=tuple(self.layer.strides),
            dilation=tuple(self.layer.dilation_rate) if as_applied else (1, 1),
            same=self.layer.padding == "same" or not as_applied,
            groups=self.layer.groups,
        )


class Projection(keras.constraints.Constraint):
    """The constraint of a kernel that a `SpectralNormalization` bounds, after the constraint that it had."""

    def __init__(self, normalization: SpectralNormalization, earlier: Any) -> None:
        self._normalization, self._earlier = normalization, earlier

    def __call__(self, kernel: Any) -> Any:
        """Answers the bounded kernel."""
        return self._normalization.bounded(kernel if self._earlier is None else self._earlier(kernel))


def _unit(vector: Any) -> Any:
    """Answers the vector of length 1, or zeros of zeros."""
    return vector * ops.rsqrt(ops.maximum(ops.sum(ops.square(vector)), 1e-12))

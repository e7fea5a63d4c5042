"""What an exchange of weights accepts answers alike; what would not is refused, and nothing is written."""

import numpy as np
import pytest

import keras
from hesitant.keras import RandomFeatureGaussianProcess, from_torch, to_torch

from .models import data, numbers

L = keras.layers
X, _ = data(40)
IMAGES = np.random.RandomState(0).randn(2, 9, 8, 4).astype(np.float32)
SERIES = IMAGES[:, :, 0]


def convolution(filters=6, size=3, **settings):
    layer = L.Conv2D(filters, size, data_format="channels_last", bias_initializer="random_normal", **settings)
    layer.build(IMAGES.shape)
    return layer


def torch_convolution(filters=6, size=3, **settings):
    import torch

    return torch.nn.Conv2d(4, filters, size, **settings)


def process(units=3, **settings):
    layer = RandomFeatureGaussianProcess(units, 64, gp_cov_momentum=-1, **settings)
    layer(X, training=True)
    layer.factor_covariance()
    return layer


def torch_process(width=4, **settings):
    from hesitant.nn import RandomFeatureGaussianProcess as TorchProcess

    return TorchProcess(width, 3, num_inducing=64, **settings).eval()


def refused_both_ways(layer, module, match):
    """Refused in both directions, with nothing written on either side."""
    before = [numbers(variable) for variable in layer.variables]
    theirs = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for exchange in (to_torch, from_torch):
        with pytest.raises(ValueError, match=match):
            exchange(layer, module)
    assert all(np.array_equal(a, numbers(b)) for a, b in zip(before, layer.variables, strict=True))
    assert all(bool((tensor == module.state_dict()[name]).all()) for name, tensor in theirs.items())


ALIKE = [
    ({}, {}),
    ({"strides": 2}, {"stride": 2}),
    ({"strides": (2, 1)}, {"stride": (2, 1)}),
    ({"dilation_rate": 2}, {"dilation": 2}),
    ({"groups": 2}, {"groups": 2}),
    ({"padding": "valid"}, {"padding": "valid"}),
    ({"padding": "same"}, {"padding": "same"}),
    ({"padding": "same"}, {"padding": 1}),
    ({"padding": "same", "dilation_rate": 2}, {"padding": 2, "dilation": 2}),
    ({"padding": "same", "size": (3, 5)}, {"padding": (1, 2), "size": (3, 5)}),
    ({"padding": "same", "size": 4}, {"padding": "same", "size": 4}),
    ({"padding": "same", "size": 1, "strides": 2}, {"size": 1, "stride": 2}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("ours", "theirs"), ALIKE, ids=str)
def test_convolutions_that_are_accepted_answer_alike(ours, theirs):
    import torch

    layer, module = convolution(**ours), torch_convolution(**theirs)
    for exchange in (to_torch, from_torch):
        exchange(layer, module)
        answer = module(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(numbers(layer(IMAGES)), answer.detach().numpy(), atol=1e-5)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)


DIFFERENT = [
    ({"strides": 2}, {"dilation": 2}, r"strides of layer \w+ is \(2, 2\), and of the module \(1, 1\).*stride="),
    ({"dilation_rate": 2}, {}, r"dilation_rate of layer \w+ is \(2, 2\), and of the module \(1, 1\).*dilation="),
    ({"groups": 2}, {}, r"groups of layer \w+ is 2, and of the module 1.*groups=2"),
    ({}, {"padding": 1}, r"padding of layer \w+ is 'valid', and of the module \(1, 1\).*padding=\(0, 0\)"),
    ({"padding": "same"}, {}, r"padding of layer \w+ is 'same', and of the module \(0, 0\).*padding=\(1, 1\)"),
    ({"padding": "same", "dilation_rate": 2}, {"padding": 1, "dilation": 2}, r"padding=\(2, 2\)"),
    ({"padding": "same", "size": 4}, {"padding": 1, "size": 4}, r"padding='same'"),
    ({"padding": "same", "strides": 2}, {"padding": 1, "stride": 2}, r"padding of layer .* ZeroPadding2D"),
    ({"padding": "same"}, {"padding": 1, "padding_mode": "circular"}, r"padding_mode .*'zeros'.*'circular'"),
]


@pytest.mark.parametrize(("ours", "theirs", "match"), DIFFERENT, ids=str)
def test_convolutions_that_would_not_answer_alike_are_refused(ours, theirs, match):
    refused_both_ways(convolution(**ours), torch_convolution(**theirs), match)


def test_series_are_convolved_alike_or_refused():
    import torch

    layer, module = L.Conv1D(6, 3, padding="same", strides=1, data_format="channels_last"), torch.nn.Conv1d(4, 6, 3, 1)
    layer.build(SERIES.shape)
    refused_both_ways(layer, module, r"padding=\(1,\)")
    module = torch.nn.Conv1d(4, 6, 3, padding=1)
    to_torch(layer, module)
    answer = module(torch.from_numpy(SERIES).permute(0, 2, 1)).permute(0, 2, 1).detach().numpy()
    np.testing.assert_allclose(numbers(layer(SERIES)), answer, atol=1e-5)
    causal = L.Conv1D(6, 3, padding="causal", data_format="channels_last")
    causal.build(SERIES.shape)
    refused_both_ways(causal, torch.nn.Conv1d(4, 6, 3, padding=1), "'causal'.* ZeroPadding1D")


def test_kinds_between_which_no_weights_go():
    import torch

    transposed = L.Conv2DTranspose(4, 3, data_format="channels_last")
    transposed.build(IMAGES.shape)
    for layer, module in (
        (transposed, torch_convolution(4)),
        (convolution(4), torch.nn.ConvTranspose2d(4, 4, 3)),
        (convolution(), torch.nn.Conv1d(4, 6, 3)),
        (convolution(), torch.nn.Linear(4, 6)),
    ):
        with pytest.raises(TypeError, match="no exchange"):
            to_torch(layer, module)


@pytest.mark.parametrize("name", ["cos", "sin", "relu", "tanh", "gelu"])
def test_features_are_made_by_the_same_function_or_refused(name):
    import torch

    functions = {"cos": torch.cos, "sin": torch.sin, "relu": torch.nn.ReLU(), "tanh": torch.tanh}
    functions["gelu"] = torch.nn.functional.gelu
    layer = process(custom_random_features_activation=name)
    for other, function in functions.items():
        module = torch_process(activation=function)
        if other != name:
            refused_both_ways(layer, module, rf"custom_random_features_activation of layer \w+ is '{name}'")
            continue
        to_torch(layer, module)
        posterior = module.posterior(torch.from_numpy(X))
        logits, variance = layer(X, training=False)
        np.testing.assert_allclose(numbers(logits), posterior.mean.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(numbers(variance), posterior.variance[:, 0].detach().numpy(), atol=1e-5)


def test_two_ways_of_a_function_of_the_same_name_are_told_apart():
    import torch

    layer = process(custom_random_features_activation="leaky_relu")  # of slope 0.2, and 0.01 in PyTorch
    refused_both_ways(layer, torch_process(activation=torch.nn.functional.leaky_relu), "do not answer alike")
    to_torch(layer, torch_process(activation=torch.nn.LeakyReLU(0.2)))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"gp_kernel_scale": 3.0}, 3.0),
        ({"gp_kernel_scale": 3.0, "gp_kernel_scale_trainable": True}, 3.0),
        ({"gp_kernel_scale": 3.0, "use_custom_random_features": False}, 9.0),
        ({"gp_kernel_scale": 3.0, "normalize_input": True}, 1.0),
    ],
    ids=str,
)
def test_a_linear_kernel_needs_the_same_scale_of_its_inputs(settings, scale):
    import torch

    layer = process(gp_kernel_type="linear", **settings)
    options = {"kernel": "linear", "normalize_input": "normalize_input" in settings}
    refused_both_ways(layer, torch_process(kernel_scale=2.0, **options), rf"gp_kernel_scale.*kernel_scale={scale:g}")
    module = torch_process(kernel_scale=scale, **options)
    for exchange in (to_torch, from_torch):
        exchange(layer, module)
        posterior = module.posterior(torch.from_numpy(X))
        logits, variance = layer(X, training=False)
        np.testing.assert_allclose(numbers(logits), posterior.mean.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(numbers(variance), posterior.variance[:, 0].detach().numpy(), atol=1e-5)


def test_a_gaussian_kernel_takes_any_scale_into_its_projection():
    import torch

    layer, module = process(gp_kernel_scale=3.0), torch_process(kernel_scale=2.0)
    to_torch(layer, module)
    posterior = module.posterior(torch.from_numpy(X))
    np.testing.assert_allclose(numbers(layer(X, training=False)[0]), posterior.mean.detach().numpy(), atol=1e-5)


def test_a_projection_of_another_width_is_refused():
    refused_both_ways(process(), torch_process(width=5), r"input width of layer \w+ is 4, and of the module 5")

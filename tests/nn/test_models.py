import pytest
import torch
from torch import nn

from hesitant.nn.models import MLP, DeepResNet, WideResNet


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def num_parameters(model, trainable=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


BUILDERS = {
    "DeepResNet": (lambda generator: DeepResNet(3, 4, width=8, depth=2, generator=generator), (5, 3)),
    "MLP": (lambda generator: MLP(3, 4, hidden=(8, 6), dropout_input=0.2, generator=generator), (5, 3)),
    "WideResNet": (lambda generator: WideResNet(10, 1, 4, 0.3, generator=generator), (5, 3, 8, 8)),
}


@pytest.fixture(params=BUILDERS)
def case(request):
    return BUILDERS[request.param]


def test_deep_resnet_is_the_tutorials_network():
    model = DeepResNet()
    assert num_parameters(model) == 99_714
    assert num_parameters(model, trainable=True) == 99_330
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "input_layer.weight",
        "input_layer.bias",
    ]


def test_deep_resnet_computes_the_tutorials_formula():
    model = DeepResNet(3, 4, width=8, depth=2, generator=seeded()).eval()
    x = torch.randn(5, 3, generator=seeded(1))
    weights = model.state_dict()
    hidden = x @ weights["input_layer.weight"].T + weights["input_layer.bias"]
    for block in range(2):
        branch = hidden @ weights[f"blocks.{block}.linear.weight"].T + weights[f"blocks.{block}.linear.bias"]
        hidden = hidden + branch.clamp(min=0)
    expected = hidden @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(model(x), expected)


def test_the_hidden_vector_passes_a_block_whose_branch_is_dropped():
    model = DeepResNet(3, 4, width=8, depth=2, dropout=0.999999, generator=seeded()).train()
    x = torch.randn(5, 3, generator=seeded(1))
    torch.testing.assert_close(model(x), model.classifier(model.input_layer(x)))


def test_the_two_mnist_networks_have_their_published_sizes():
    keras = MLP(784, 10, hidden=(500, 250), dropout=0.2, dropout_input=0.2)
    assert num_parameters(keras) == 784 * 500 + 500 + 500 * 250 + 250 + 250 * 10 + 10
    assert [m.p for m in keras.modules() if isinstance(m, nn.Dropout)] == [0.2] * 3  # before each weight layer
    assert isinstance(keras.layers[0], nn.Dropout)
    torch_recipe = MLP(784, 10)
    assert num_parameters(torch_recipe) == 784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10
    assert [m.p for m in torch_recipe.modules() if isinstance(m, nn.Dropout)] == [0.5] * 2  # after each hidden layer
    assert not isinstance(torch_recipe.layers[0], nn.Dropout)


def test_mlp_flattens_images():
    model = MLP(6, 4, hidden=(), generator=seeded()).eval()
    images = torch.randn(5, 1, 2, 3, generator=seeded(1))
    torch.testing.assert_close(model(images), model.classifier(images.reshape(5, 6)))


def test_mlp_names_a_wrong_input_size():
    with pytest.raises(ValueError, match=r"\(5, 7\) has 7 numbers an input.*in_features=6"):
        MLP(6, 4)(torch.zeros(5, 7))


@pytest.mark.parametrize(("depth", "widen", "millions"), [(28, 10, 36.479194), (16, 8, 10.961370), (40, 4, 8.949210)])
def test_wide_resnet_has_the_published_number_of_parameters(depth, widen, millions):
    with torch.device("meta"):
        model = WideResNet(depth, widen)
    assert num_parameters(model) == round(millions * 1e6)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert (
        len(convolutions) + 3 == depth
    )  # the paper counts two of the three shortcuts' convolutions, and the classifier


def test_wide_resnet_halves_the_image_twice_and_takes_any_size():
    model = WideResNet(10, 2, 5, generator=seeded()).eval()
    assert model.blocks(model.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 128, 8, 8)
    for size in (32, 33, 7):
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_wide_resnet_keeps_the_variance_of_its_input():
    # He's initialisation: a branch's variance is that of its input, whatever the width.
    model = WideResNet(10, 4, generator=seeded()).train()
    block = model.blocks[0]
    activated = torch.randn(8, 16, 16, 16, generator=seeded(1)).relu()
    variance = block.conv2(block.norm2(block.conv1(activated)).relu()).var()
    assert 0.5 < variance < 2


def test_logits_and_gradients_are_finite_and_reach_every_trainable_parameter(case):
    build, shape = case
    model = build(seeded()).train()
    logits = model(torch.randn(shape, generator=seeded(1)))
    assert logits.shape == (5, 4)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.isfinite().all()) == parameter.requires_grad, name


def test_the_classifier_is_the_last_linear(case):
    build, _ = case
    names = [name for name, module in build(None).named_modules() if isinstance(module, nn.Linear)]
    assert names[-1] == "classifier"


def test_a_generator_decides_every_weight_and_the_global_one_is_untouched(case):
    build, _ = case
    state = torch.get_rng_state()
    first, again, other = build(seeded(7)), build(seeded(7)), build(seeded(8))
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (a.ndim == 1), name  # biases and norms start alike, nothing else does


def test_without_a_generator_the_global_seed_decides(case):
    build, _ = case
    with torch.random.fork_rng():
        torch.manual_seed(7)
        first, other = build(None), build(None)
        torch.manual_seed(7)
        again = build(None)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (a.ndim == 1), name


def test_linear_layers_start_glorot_uniform_with_zero_biases(case):
    build, _ = case
    for module in build(seeded()).modules():
        if isinstance(module, nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert 0.7 * bound < module.weight.abs().max() <= bound
            assert module.bias.eq(0).all()


def test_evaluation_is_deterministic_and_training_drops(case):
    build, shape = case
    x = torch.randn(shape, generator=seeded(1))
    model = build(seeded())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(model.eval()(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    "build", [lambda: DeepResNet(dropout=0), lambda: MLP(3, 2, dropout=0), lambda: WideResNet(10, 1)]
)
def test_a_model_without_dropout_holds_no_dropout_module(build):
    assert not any(isinstance(module, nn.Dropout) for module in build().modules())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DeepResNet(0), "in_features=0"),
        (lambda: DeepResNet(depth=0), "depth=0"),
        (lambda: DeepResNet(width=1.5), "width=1.5"),
        (lambda: DeepResNet(dropout=1.0), r"dropout=1.0 .* \[0, 1\)"),
        (lambda: DeepResNet(dropout=float("nan")), "dropout=nan"),
        (lambda: MLP(3, 2, hidden=(4, -1)), r"hidden\[1\]=-1"),
        (lambda: MLP(3, 2, dropout_input=-0.1), "dropout_input=-0.1"),
        (lambda: WideResNet(27), "depth=27 is not 6 n"),
        (lambda: WideResNet(4), "depth=4 is not 6 n"),
        (lambda: WideResNet(widen=0), "widen=0"),
        (lambda: WideResNet(num_classes=True), "num_classes=True"),
    ],
)
def test_errors_name_the_argument_and_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()

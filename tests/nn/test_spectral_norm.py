import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hesitant.nn import SpectralBoundWarning, SpectralNormalizer
from hesitant.nn.models import DeepResNet

# Bounds here are small, so that something happens; where the warning is what is tested, it is asked for.
pytestmark = pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def draw(model, seed=0, scale=1.0):
    """Draws all parameters of a model from a generator of their own."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def dense_net(seed=0):
    return draw(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), seed, 0.3)


def conv_net(seed=0):
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
    head = (nn.Conv2d(8, 8, (3, 2), dilation=2, groups=2), nn.Flatten(), nn.LazyLinear(4))
    model = nn.Sequential(*layers, *head)
    model(randn(1, 3, 13, 13))
    return draw(model, seed, 0.2)


NETS = {"dense": (dense_net, (16, 6)), "conv": (conv_net, (16, 3, 13, 13))}


@pytest.fixture(params=NETS)
def net(request):
    builder, shape = NETS[request.param]
    return builder(), randn(*shape, seed=7)


class Bounded(nn.Module):
    """A model with its normalizer, as SNGP has them."""

    def __init__(self, model, *args, **kwargs):
        super().__init__()
        self.model = model
        self.normalizer = SpectralNormalizer(model, *args, **kwargs)

    def forward(self, x):
        if self.training:
            self.normalizer.project()
        return self.model(x)


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("weight")}


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name


def dense_norm(layer, x):
    """The operator norm of a layer by the SVD of its Jacobian, without its bias."""
    zeros = torch.zeros(1, *x.shape[1:], dtype=torch.float64)
    jacobian = torch.func.jacrev(copy.deepcopy(layer).double().requires_grad_(False))(zeros)
    return float(torch.linalg.matrix_norm(jacobian.reshape(-1, zeros.numel()), ord=2))


# ---------------------------------------------------------------- the norm


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 7),
        nn.Conv1d(2, 3, 4, stride=3, padding=2),
        nn.Conv1d(2, 4, 3, padding="same", dilation=2, groups=2),
        nn.Conv2d(2, 3, 3, padding="same"),
        nn.Conv2d(2, 3, (3, 5), padding="same", dilation=(2, 1)),
        nn.Conv2d(2, 3, 3, padding="valid", stride=2),
        nn.Conv2d(4, 4, 3, groups=4, padding=(2, 1), stride=(3, 1)),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect", stride=2),
        nn.Conv2d(2, 3, 3, padding="same", padding_mode="replicate"),
        nn.Conv2d(2, 3, (2, 4), padding="same", padding_mode="circular"),
        nn.Conv3d(1, 2, 2, stride=2, padding=1),
        nn.Conv2d(3, 4, 2, stride=2),  # patches
        nn.Conv2d(4, 4, 2, stride=2, groups=2),
        nn.Conv2d(2, 3, (2, 1), stride=(3, 2)),
        nn.Conv1d(2, 3, 3, stride=5, dilation=2),
        nn.Conv1d(2, 3, 3, stride=4, dilation=2),
    ],
    ids=str,
)
def test_norms_are_those_of_the_operator_and_projection_bounds_them(layer):
    shapes = [(2, 5)]
    if not isinstance(layer, nn.Linear):
        shapes = [(2, layer.in_channels, *(size,) * len(layer.kernel_size)) for size in (6, 7)]
    for shape in shapes:
        draw(layer)
        x = randn(*shape)
        normalizer = SpectralNormalizer(layer, 100.0, warm_up_iterations=300)
        layer(x)
        exact = dense_norm(layer, x)
        assert normalizer.norms()[""] == pytest.approx(exact, rel=1e-5)
        normalizer.norm_bound = exact / 2
        normalizer.project()
        assert dense_norm(layer, x) == pytest.approx(exact / 2, rel=0.01)


def test_reshaped_norm_is_that_of_the_kernel_as_a_matrix():
    layer = draw(nn.Conv2d(3, 4, 3))
    normalizer = SpectralNormalizer(layer, conv_norm="reshaped")
    expected = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2))
    assert normalizer.norms()[""] == pytest.approx(expected, rel=1e-5)


def test_same_padding_norm_knows_neither_padding_nor_dilation():
    x = randn(1, 2, 7, 7)
    layers = [nn.Conv2d(2, 3, 3, padding=p, dilation=d) for p, d in ((1, 1), (0, 1), (2, 2))]
    norms = []
    for layer in layers:
        draw(layer)
        normalizer = SpectralNormalizer(layer, conv_norm="same_padding")
        layer(x)
        norms.append(normalizer.norms()[""])
    assert norms[0] == pytest.approx(dense_norm(layers[0], x), rel=1e-5)
    assert norms == pytest.approx([norms[0]] * 3)


def test_groups_of_one_shape_equal_one_by_one():
    model = conv_net()
    model.append(draw(nn.Linear(4, 4), 5)).append(draw(nn.Linear(4, 4), 6))
    x = randn(2, 3, 13, 13)
    together = SpectralNormalizer(model, 0.3, power_iterations=3, generator=seeded(1))
    model(x)
    alone = copy.deepcopy(model)
    vectors = {name: u.clone() for name, (u, _) in together.vectors().items()}
    together.project()
    for name, layer in alone.named_modules():
        if name in vectors:
            single = SpectralNormalizer(layer, 0.3, power_iterations=3, generator=seeded(2))
            single._memory.input_sizes.update(
                {"": together._memory.input_sizes[name]} if name in together._memory.input_sizes else {}
            )
            single.set_vectors("", vectors[name])
            single.project()
            torch.testing.assert_close(model.get_submodule(name).weight, layer.weight)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(("optimizer", "fused"), [("SGD", False), ("AdamW", True)])
def test_bound_holds_after_training(net, optimizer, fused):
    model, x = net
    bounded = Bounded(model, 0.9)
    target = 10 * randn(16, model(x).shape[1], seed=8)
    step = getattr(torch.optim, optimizer)(model.parameters(), 0.01, fused=fused)
    pushed = 0.0
    for _ in range(60):
        (bounded(x) - target).square().mean().backward()
        step.step()
        step.zero_grad()
        pushed = max(pushed, *bounded.normalizer.norms().values()) if pushed <= 0.9 else pushed
    bounded(x)
    # A second direction may outgrow the first before one iteration a step has found it (1.17 was seen here for a bound
    # of .9): the projection that goes with fitting the covariance finds it.
    assert max(bounded.normalizer.norms().values()) <= 0.9 * 1.35
    bounded.normalizer.project(num_iterations=30, force=True)
    assert pushed > 0.9  # the loss does push against the bound
    norms = bounded.normalizer.norms()
    assert max(norms.values()) <= 0.9 * 1.01
    assert max(norms.values()) > 0.9 * 0.95  # and the bound is not undershot


def test_one_iteration_a_step_is_enough_where_steps_are_small():
    model, x = DeepResNet(width=32, depth=3, generator=seeded(2)), randn(256, 2, seed=7)
    bounded, target = Bounded(model, 0.9), (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(150):
        F.cross_entropy(bounded(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    bounded(x)
    assert max(bounded.normalizer.norms().values()) <= 0.9 * 1.01


def test_a_forced_projection_finds_what_has_outgrown_the_known_direction():
    layer = nn.Linear(6, 6)
    normalizer = SpectralNormalizer(layer, 0.9)
    normalizer.project()
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([0.9, 1.0, 0.3, 0.2, 0.1, 0.0])))
    normalizer.set_vectors("", torch.eye(6)[0])
    normalizer.project(num_iterations=30)
    assert normalizer.vectors()[""][0][0] == 1  # exactly the first direction is a fixed point
    normalizer.project(num_iterations=30, force=True)
    assert layer.weight.detach().abs().max() <= 0.9 * 1.01


def all_optimizers():
    yield lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9)
    for name in ("SGD", "Adam", "AdamW", "Adagrad"):
        for option in ({}, {"fused": True}, {"foreach": True}):
            yield lambda p, name=name, option=option: getattr(torch.optim, name)(p, 1e-3, **option)
    for name in ("RMSprop", "NAdam", "RAdam", "Rprop", "Adamax", "ASGD"):
        yield lambda p, name=name: getattr(torch.optim, name)(p, 1e-3)


def test_every_optimizers_step_is_seen():
    for make in all_optimizers():
        assert_step_is_seen(make)


def assert_step_is_seen(make):
    model, x = dense_net(), randn(16, 6)
    bounded, optimizer = Bounded(model, 0.5), make(model.parameters())
    bounded(x)
    vectors = {layer: u.clone() for layer, (u, _) in bounded.normalizer.vectors().items()}
    bounded(x).square().sum().backward()
    optimizer.step()
    bounded.normalizer.project()
    for layer, (u, _) in bounded.normalizer.vectors().items():
        assert not torch.equal(u, vectors[layer]), layer
    assert max(bounded.normalizer.norms().values()) <= 0.5 * 1.01


def test_weights_that_have_not_moved_are_not_touched(net):
    model, x = net
    bounded = Bounded(model, 0.3)
    model(x)
    bounded(x)
    before, vectors = weights_of(model), copy.deepcopy(bounded.normalizer.vectors())
    for _ in range(3):
        bounded(x)
    assert_same(before, weights_of(model))
    for name, (u, _) in bounded.normalizer.vectors().items():
        assert torch.equal(u, vectors[name][0])


def test_one_layer_that_moved_leaves_the_others_of_its_group_alone():
    model = dense_net()
    normalizer = SpectralNormalizer(model, 0.3)
    normalizer.project()
    before = weights_of(model)
    with torch.no_grad():
        model[2].weight.mul_(4)
    normalizer.project()
    assert torch.equal(model[4].weight, before["4.weight"])
    assert normalizer.norms()["2"] == pytest.approx(0.3, rel=0.01)


def test_weights_within_the_bound_are_never_changed(net):
    model, x = net
    before = weights_of(model)
    bounded = Bounded(model, 1000.0)
    bounded(x)
    bounded.normalizer.project(force=True)
    assert_same(before, weights_of(model))


def test_inference_is_pure(net):
    model, x = net
    bounded, before = Bounded(model, 0.1).eval(), weights_of(model)
    assert torch.equal(bounded(x), bounded(x))
    assert_same(before, weights_of(model))


@pytest.mark.parametrize("resized", [False, True])
def test_two_forwards_before_one_backward_have_the_gradients_of_the_weights_used(net, resized):
    model, x = net
    bounded = Bounded(model, 0.1)
    other = randn(4, 3, 17, 17) if resized and x.ndim == 4 else x[:4]
    trunk = model[:5] if x.ndim == 4 else model  # its Linear takes one size only
    # From the very first step, where convolutions learn their input size between the two forwards.
    for _ in range(3):
        bounded.normalizer.project()
        used = copy.deepcopy(trunk)
        first, kept = x.clone().requires_grad_(), x.clone().requires_grad_()
        loss = trunk(first).square().sum()
        bounded.normalizer.project()
        loss = loss + trunk(other).square().sum()
        bounded.normalizer.project()
        loss.backward()
        (used(kept).square().sum() + used(other).square().sum()).backward()
        torch.testing.assert_close(first.grad, kept.grad)
        with torch.no_grad():
            for p in trunk.parameters():
                p += 0.1 * p.grad.sign() + 0.1
                p.grad = None


def test_a_convolution_is_bounded_at_each_size_it_meets():
    layer = draw(nn.Conv2d(2, 2, 3, padding=1))
    bounded = Bounded(layer, 0.5, power_iterations=50)
    for size in (4, 9, 4, 12):
        x = randn(1, 2, size, size)
        layer(x)
        with torch.no_grad():
            layer.weight.add_(0.3)
        bounded(x)
        assert dense_norm(layer, x) <= 0.5 * 1.01


def test_inputs_of_every_length_do_not_fill_the_memory():
    layer = draw(nn.Conv1d(1, 1, 3))
    bounded = Bounded(layer, 0.5, warm_up_iterations=2)
    for size in range(5, 60):
        bounded(randn(1, 1, size))
    bounded.normalizer.project()
    assert sum(len(known) for known in bounded.normalizer._memory.vectors.values()) <= 8


def test_gradients_are_not_tracked_and_the_global_generator_is_left_alone(net):
    model, x = net
    model(x)
    before = torch.get_rng_state()
    SpectralNormalizer(model).project()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in model.parameters())


def test_a_seed_reproduces():
    first, second = (Bounded(dense_net(), 0.3, warm_up_iterations=0, generator=seeded(4)) for _ in range(2))
    other = Bounded(dense_net(), 0.3, warm_up_iterations=0, generator=seeded(5))
    for bounded in (first, second, other):
        bounded(randn(2, 6))
    assert_same(weights_of(first.model), weights_of(second.model))
    assert not torch.equal(first.model[0].weight, other.model[0].weight)


def test_compiled_model_is_projected():
    bounded = Bounded(conv_net(), 0.3)
    x = randn(2, 3, 13, 13)
    bounded.model(x)
    compiled = torch.compile(bounded, backend="eager")
    expected = copy.deepcopy(bounded)(x)
    torch.testing.assert_close(compiled(x), expected)
    assert max(bounded.normalizer.norms().values()) <= 0.3 * 1.02


# ---------------------------------------------------------------- what is bounded, and what is not


def test_frozen_excluded_parametrized_and_transposed_are_left_as_they_are():
    model = nn.ModuleDict(
        {
            "free": nn.Linear(4, 4),
            "frozen": nn.Linear(4, 4),
            "excluded": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
            "weight_norm": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "transposed": nn.ConvTranspose2d(2, 2, 3),
            "attention": nn.MultiheadAttention(4, 2),
            "embedding": nn.Embedding(4, 4),
            "norm": nn.LayerNorm(4),
        }
    )
    draw(model)
    model["frozen"].requires_grad_(False)
    before = weights_of(model)
    normalizer = SpectralNormalizer(model, 0.01, exclude=["excluded"])
    with pytest.warns(SpectralBoundWarning):
        normalizer.project()
    moved = {name for name, weight in weights_of(model).items() if not torch.equal(weight, before[name])}
    assert moved == {"free.weight", "attention.out_proj.weight"}
    assert normalizer.unbounded == {
        "excluded.0": "excluded",
        "excluded.1": "excluded",
        "weight_norm": "parametrized weight",
        "transposed": "transposed convolution",
        "attention.in_proj_weight": "packed attention weight",
    }
    model["frozen"].requires_grad_(True)
    normalizer.project()
    assert normalizer.norms()["frozen"] == pytest.approx(0.01, rel=0.01)


def test_a_weight_parametrized_later_is_said_to_be_unbounded():
    model = dense_net()
    normalizer = SpectralNormalizer(model, 0.3)
    normalizer.project()
    nn.utils.parametrizations.weight_norm(model[2])
    normalizer.project()
    assert normalizer.unbounded == {"2": "parametrized weight"}
    assert set(normalizer.norms()) == {"0", "4"}


def test_tied_weights_shrink_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    draw(model, scale=0.3)
    model[1].weight = model[0].weight
    normalizer = SpectralNormalizer(model, 0.5, warm_up_iterations=200)
    normalizer.project()
    assert torch.linalg.matrix_norm(model[1].weight.detach(), ord=2).item() == pytest.approx(0.5, rel=1e-3)


def test_lazy_layers_are_bounded_once_they_have_a_shape():
    model = nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(4))
    normalizer = SpectralNormalizer(model, 0.1)
    normalizer.project()
    model(randn(1, 2, 6, 6))
    draw(model, scale=0.1)
    normalizer.project()
    assert normalizer.norms() == pytest.approx({"0": 0.1, "2": 0.1}, rel=0.02)


def test_a_convolution_called_with_its_input_by_name_is_bounded():
    layer = draw(nn.Conv2d(2, 2, 3), scale=0.1)
    normalizer = SpectralNormalizer(layer, 0.1)
    layer(input=randn(1, 2, 5, 5))
    normalizer.project()
    assert normalizer.norms()[""] == pytest.approx(0.1, rel=0.02)
    layer(randn(2, 5, 5))  # without a batch axis: the same size
    assert normalizer._memory.input_sizes[""] == (5, 5)


def test_zero_kernels_stay_zero_and_finite():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(18, 2))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    bounded = Bounded(model, 0.5)
    for _ in range(3):
        bounded(randn(1, 2, 5, 5))
        bounded.normalizer.project(force=True)
    assert all(torch.equal(p, torch.zeros_like(p)) for p in model.parameters())
    assert bounded.normalizer.norms() == {"0": 0.0, "2": 0.0}
    draw(model)
    bounded.normalizer.project(num_iterations=100)
    # Zero is where some layers begin, not where they stay.
    x = randn(1, 2, 5, 5)
    assert dense_norm(model[0], x) <= 0.5 * 1.01
    assert dense_norm(model[2], model[:2](x)) <= 0.5 * 1.01


def test_what_a_given_bound_takes_of_the_gain_is_said_before_the_weights_change():
    model = dense_net()
    with torch.no_grad():
        model[0].weight.mul_(10)
        model[4].weight.mul_(20)
    before, normalizer = weights_of(model), SpectralNormalizer(model, 1.0)
    norms = normalizer.norms()
    assert normalizer.bounds()[1].sigma == norms["2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SpectralBoundWarning) as raised:
            normalizer.project()
    message = str(raised.value)
    share = 1 / norms["0"] / norms["2"] / norms["4"]
    assert "norm_bound=1.0 is about to shrink 3 of 3 layers. The product of their norms" in message
    assert f"falls to {100 * share:.2g} % of what it is; most of all 4 from {norms['4']:.3g} to 1; 0 from" in message
    assert_same(before, weights_of(model))


def test_layers_that_lose_little_each_are_added_up():
    model = nn.Sequential(*(draw(nn.Linear(6, 6), seed) for seed in range(8)))
    with torch.no_grad():
        for layer in model:
            layer.weight.div_(torch.linalg.matrix_norm(layer.weight, ord=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SpectralNormalizer(copy.deepcopy(model)[:6], 0.9).project()  # .53 is left
        with pytest.raises(SpectralBoundWarning, match=r"shrink 8 of 8 layers.* falls to 43 % of what it is"):
            SpectralNormalizer(model, 0.9).project()


def test_a_convolution_is_reported_when_its_size_is_known():
    bounded = Bounded(draw(nn.Conv2d(2, 2, 3)), 0.1)
    x = randn(1, 2, 5, 5)
    bounded(x)
    with torch.no_grad():
        bounded.model.weight.mul_(1.01)
    with pytest.warns(SpectralBoundWarning, match="shrink 1 of 1 layers"):
        bounded(x)
    with torch.no_grad():
        bounded.model.weight.mul_(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounded(x)  # said once


def test_convolutions_that_have_seen_nothing_are_said_not_to_be_counted():
    normalizer = SpectralNormalizer(draw(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 8))), 0.5)
    with pytest.warns(SpectralBoundWarning, match=r"1 of 1 layers \(1 convolutions have seen no input"):
        normalizer.project()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_bound": 0.0}, r"norm_bound=0.0 must be a positive number or 'initial'"),
        ({"norm_bound": "first"}, r"norm_bound='first' must be"),
        ({"norm_bound": float("nan")}, r"norm_bound=nan must be"),
        ({"norm_bound": float("inf")}, r"norm_bound=inf must be"),
        ({"power_iterations": 0}, r"power_iterations=0 must be at least 1"),
        ({"warm_up_iterations": -1}, r"warm_up_iterations=-1 at"),
        ({"conv_norm": "fft"}, r"conv_norm='fft' is unknown: expected 'operator', 'same_padding' or 'reshaped'"),
        ({"exclude": ["head"]}, r"exclude='head' matches no module of the model. Layers .*: '0', '2', '4'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SpectralNormalizer(dense_net(), **options)


def test_what_cannot_be_answered_is_an_error():
    model = conv_net()
    normalizer = SpectralNormalizer(draw(nn.Conv2d(2, 2, 3)))
    with pytest.raises(ValueError, match=r"the convolutions \[''\] have not seen an input"):
        normalizer.norms()
    dense = SpectralNormalizer(model[-1])
    with pytest.raises(ValueError, match=r"name='x' is no bounded layer that has seen an input; there are \[''\]"):
        dense.set_vectors("x", torch.zeros(4))
    with pytest.raises(ValueError, match=r"u has shape \(5,\): '' expects \(4,\)"):
        dense.set_vectors("", torch.zeros(5))
    model[-1].weight.data = torch.zeros(0)  # as ZeRO-3 leaves it
    with pytest.raises(RuntimeError, match=r"layer '' is sharded \(FSDP, ZeRO-3\) or empty, shape \(0,\)"):
        SpectralNormalizer(model[-1]).project()


# ---------------------------------------------------------------- copies, casts, checkpoints


def push(bounded, x, factor=5.0):
    """Moves all weights, as an optimizer would."""
    with torch.no_grad():
        for parameter in bounded.model.parameters():
            parameter.mul_(factor)
    return bounded(x)


@pytest.mark.parametrize(
    ("how", "when"),
    [("deepcopy", "fresh"), ("deepcopy", "projected"), ("pickle", "fresh"), ("torch.save", "projected")],
)
def test_a_copy_projects_its_own_weights(net, how, when):
    model, x = net
    bounded = Bounded(model, 0.5)
    if when == "projected":
        model(x)
        bounded(x)
    if how == "deepcopy":
        twin = copy.deepcopy(bounded)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(bounded))
    else:
        file = io.BytesIO()
        torch.save(bounded, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    before = weights_of(model)
    twin(x)
    push(twin, x)
    push(twin, x)
    assert_same(before, weights_of(model))
    assert max(twin.normalizer.norms().values()) <= 0.5 * 1.02
    for name, layer in twin.normalizer._layers.items():
        assert layer is twin.model.get_submodule(name)
    after = weights_of(twin.model)
    push(bounded, x)
    assert_same(after, weights_of(twin.model))
    if x.ndim == 4:  # the copy's convolutions tell the copy of their sizes, and nobody else
        trunk = twin.model[:5]
        trunk(randn(1, 3, 21, 21))
        assert twin.normalizer._memory.input_sizes["0"] == (21, 21)
        assert bounded.normalizer._memory.input_sizes["0"] == (13, 13)


@pytest.mark.parametrize(
    ("dtype", "when"), [(torch.float16, "fresh"), (torch.bfloat16, "projected"), (torch.float64, "projected")]
)
def test_casts_after_construction(net, dtype, when):
    model, x = net
    bounded = Bounded(model, 0.7)
    model(x)
    if when == "projected":
        bounded(x)
    bounded.to(dtype)
    x = x.to(dtype)
    for _ in range(4):
        push(bounded, x, 1.2)
    assert all(p.dtype == dtype for p in model.parameters())
    assert max(bounded.normalizer.norms().values()) <= 0.7 * 1.02
    assert all(u.dtype in (torch.float32, torch.float64) for u, _ in bounded.normalizer.vectors().values())


def test_the_cast_of_the_model_alone_is_noticed():
    model = dense_net()
    normalizer = SpectralNormalizer(model, 0.5)
    normalizer.project()
    model.double()
    with torch.no_grad():
        model[0].weight.mul_(2)
    normalizer.project()
    assert normalizer.norms()["0"] == pytest.approx(0.5, rel=0.01)


def test_a_weight_put_in_another_ones_place_is_projected():
    model = dense_net()
    normalizer = SpectralNormalizer(model, 0.5)
    normalizer.project()
    model[0].weight = nn.Parameter(0.3 * randn(8, 6, seed=3))
    normalizer.project()
    assert torch.linalg.matrix_norm(model[0].weight.detach(), ord=2) <= 0.5 * 1.01


def test_assigned_weights_are_projected():
    model = dense_net()
    normalizer = SpectralNormalizer(model, 0.5)
    normalizer.project()
    model.load_state_dict(dense_net(1).state_dict(), assign=True)
    normalizer.project()
    assert max(normalizer.norms().values()) <= 0.5 * 1.01
    model.load_state_dict(dense_net(2).state_dict())
    normalizer.project(num_iterations=30)
    assert max(normalizer.norms().values()) <= 0.5 * 1.01


def train(bounded, x, steps, seed):
    optimizer = torch.optim.SGD(bounded.model.parameters(), 0.05)
    for step in range(steps):
        bounded(x + 0.1 * randn(*x.shape, seed=seed + step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("moment", ["after_a_step", "after_a_projection", "after_a_cast", "after_loading"])
def test_a_checkpoint_resumes_to_the_same_bits(net, moment):
    model, x = net
    bounded = Bounded(model, 0.3)
    train(bounded, x, 4, seed=20)
    if moment == "after_a_projection":
        bounded.normalizer.project(num_iterations=7, force=True)
    if moment == "after_a_cast":
        bounded.to("cpu")
    saved = copy.deepcopy(bounded.state_dict())
    resumed = Bounded(draw(copy.deepcopy(NETS["conv" if x.ndim == 4 else "dense"][0]()), 9, 0.1), 0.3)
    resumed.load_state_dict(saved)
    if moment == "after_loading":
        again = Bounded(copy.deepcopy(model), 0.3)
        again.load_state_dict(resumed.state_dict())
        resumed = again
    train(bounded, x, 4, seed=30)
    train(resumed, x, 4, seed=30)
    assert_same(weights_of(model), weights_of(resumed.model))
    vectors = resumed.normalizer.vectors()
    for name, (u, _) in bounded.normalizer.vectors().items():
        assert torch.equal(u, vectors[name][0])


def test_a_plain_checkpoint_loads_and_the_weights_keep_their_names():
    plain = conv_net(3).state_dict()
    bounded = Bounded(conv_net(), 0.5)
    bounded.model.load_state_dict(plain)
    assert list(bounded.model.state_dict()) == list(plain)
    assert [name for name, _ in bounded.named_parameters()] == [f"model.{name}" for name in plain]


def test_a_batch_norm_can_undo_the_bound_and_is_not_touched():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    draw(model, scale=0.2)
    before = model[1].weight.detach().clone()
    bounded = Bounded(model, 0.1)
    model(randn(4, 2, 6, 6))
    bounded(randn(4, 2, 6, 6))
    assert torch.equal(model[1].weight, before)
    assert F.relu(before).numel() == 2

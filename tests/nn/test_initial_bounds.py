"""Where no bound is given: a layer's bound is the larger of 6 and the norm that it came with."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from hesitant.nn import SpectralNormalizer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def scaled(layer, norm, x=None, seed=0):
    """A layer whose operator norm is this, at the size of x."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(randn(*parameter.shape, seed=seed))
        layer.weight.mul_(norm / norm_of(layer, x))
    return layer


def norm_of(layer, x=None):
    if x is None:
        return float(torch.linalg.matrix_norm(layer.weight.detach().double().flatten(1), ord=2))
    zeros = torch.zeros(1, *x.shape[1:], dtype=torch.float64)
    jacobian = torch.func.jacrev(copy.deepcopy(layer).double().requires_grad_(False))(zeros)
    return float(torch.linalg.matrix_norm(jacobian.reshape(-1, zeros.numel()), ord=2))


def images(size=8):
    return randn(2, 3, size, size)


def conv(norm=10.0, seed=0, size=8):
    return scaled(nn.Conv2d(3, 3, 3, padding=1), norm, images(size), seed)


class Bounded(nn.Module):
    """A model with its normalizer, as SNGP has them."""

    def __init__(self, model, **options):
        super().__init__()
        self.model = model
        self.normalizer = SpectralNormalizer(model, **options)

    def forward(self, x):
        self.normalizer.project()
        output = self.model(x)
        self.normalizer.measure()
        return output


def bound_of(normalizer, name):
    return {line.layer: line.bound for line in normalizer.bounds()}[name]


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(before, after):
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def move(model, factor):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)


# ---------------------------------------------------------------- the bound


@pytest.mark.parametrize("norm", [0.0, 2.0, 5.99, 6.5, 40.0])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_it_is_the_larger_of_six_and_the_norm_that_the_layer_came_with(norm, kind):
    layer, x = (scaled(nn.Linear(8, 8), norm), randn(4, 8)) if kind == "linear" else (conv(norm), images())
    bounded = Bounded(layer)
    before = weights_of(layer)
    bounded(x)
    assert_same(before, weights_of(layer))
    expected = max(6.0, 1.01 * norm)
    assert bound_of(bounded.normalizer, "") == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        layer.weight.mul_(100)
    bounded(x)
    assert norm_of(layer, x if kind == "conv" else None) == pytest.approx(expected if norm else 0, rel=1e-2)


def test_a_conv1d_of_gpt2_is_bounded_like_a_linear():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(24, 8)
    with torch.no_grad():
        layer.weight.copy_(randn(8, 24))
        layer.weight.mul_(9 / norm_of(layer))
    normalizer = SpectralNormalizer(layer)
    normalizer.project()
    move(layer, 3)
    normalizer.project()
    assert norm_of(layer) == pytest.approx(9 * 1.01, rel=1e-2)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("warm_up", [0, 1, 30])
def test_nothing_that_has_not_moved_is_touched_however_often(force, warm_up):
    layers = [scaled(nn.Linear(32, 32), 6.0001 + seed, seed=seed) for seed in range(6)]
    model = nn.Sequential(*layers, nn.Unflatten(1, (2, 4, 4)), scaled(nn.Conv2d(2, 2, 3), 9, randn(1, 2, 4, 4)))
    before, bounded = weights_of(model), Bounded(model, warm_up_iterations=warm_up)
    for _ in range(3):
        bounded(randn(5, 32))
        bounded.normalizer.project(force=force, num_iterations=50)
    assert_same(before, weights_of(model))


def test_a_bound_that_is_given_is_strict():
    layer = scaled(nn.Linear(8, 8), 9)
    normalizer = SpectralNormalizer(layer, 7.0)
    normalizer.project()
    assert norm_of(layer) == pytest.approx(7, rel=1e-2)
    assert bound_of(normalizer, "") == 7


def test_frozen_weights_come_with_what_they_have_when_they_thaw():
    model = nn.Sequential(scaled(nn.Linear(8, 8), 9), nn.Linear(8, 8)).requires_grad_(False)
    model[1].requires_grad_(True)
    bounded = Bounded(model)
    bounded(randn(4, 8))
    model.requires_grad_(True)
    bounded(randn(4, 8))
    assert bound_of(bounded.normalizer, "0") == pytest.approx(9.09, rel=1e-4)


# ---------------------------------------------------------------- sizes


def test_a_convolution_is_measured_before_the_first_step_moves_it():
    layer = conv(10.0)
    bounded, optimizer = Bounded(layer), torch.optim.SGD(layer.parameters(), 1e-3)
    bounded(images()).square().sum().backward()
    optimizer.step()
    move(layer, 5)
    bounded(images())
    assert norm_of(layer, images()) == pytest.approx(10.1, rel=1e-2)


@pytest.mark.parametrize("moved", [1.0, 0.5])
def test_at_another_size_it_is_the_norm_that_it_would_have_come_with(moved):
    layer = conv(10.0)
    there = norm_of(layer, images(16))
    assert there > 10.05  # larger images let the same kernel stretch more
    bounded = Bounded(layer)
    bounded(images(8))
    move(layer, moved)
    before = weights_of(layer)
    bounded(images(16))
    bounded(images(16))
    bounded(images(8))
    bounded(images(16))
    assert_same(before, weights_of(layer))
    assert bound_of(bounded.normalizer, "") == pytest.approx(1.01 * there, rel=2e-3)


def test_inputs_of_every_length_do_not_fill_the_memory_and_the_first_is_kept():
    layer = scaled(nn.Conv1d(1, 2, 3), 9, randn(1, 1, 5))
    bounded = Bounded(layer)
    for size in range(5, 30):
        bounded(randn(1, 1, size))
    rows = bounded.state_dict()["normalizer.initial_norm."]
    assert len(rows) <= 8
    assert rows[0].tolist() == pytest.approx([9, 5], rel=1e-4)


# ---------------------------------------------------------------- copies, casts, checkpoints


def net():
    model = nn.Sequential(conv(12.0, 1), nn.ReLU(), conv(3.0, 2), nn.Flatten(), scaled(nn.Linear(192, 4), 8))
    return model, images()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict", "state_dict twice", "to"])
def test_the_bounds_go_with_weights_that_have_moved(how):
    model, x = net()
    bounded = Bounded(model)
    bounded(x)
    expected = [line.bound for line in bounded.normalizer.bounds()]
    move(model, 0.1)  # what a new measurement would see
    if how == "deepcopy":
        other = copy.deepcopy(bounded)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(bounded))
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(bounded, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    elif how == "to":
        other = bounded.to(torch.float64).to(torch.float32)
    else:
        other = Bounded(net()[0])
        other(x)
        other.load_state_dict(copy.deepcopy(bounded.state_dict()))
        if how == "state_dict twice":
            again = Bounded(net()[0])
            again.load_state_dict(other.state_dict())
            other = again
    assert [line.bound for line in other.normalizer.bounds()] == expected
    move(other.model, 100)
    other(x)
    other.normalizer.project(force=True, num_iterations=30)
    assert [line.sigma for line in other.normalizer.bounds()] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_rounds_weights_and_shrinks_none(dtype):
    model, x = net()
    bounded = Bounded(model)
    bounded(x)
    bounded.to(dtype)
    before = weights_of(model)
    bounded(x.to(dtype))
    bounded.normalizer.project(force=True)
    assert_same(before, weights_of(model))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("part", ["all", "layer"])
def test_plain_weights_that_are_loaded_are_what_a_layer_comes_with(assign, part):
    model, x = net()
    bounded = Bounded(model)
    bounded(x)
    pretrained = {name: 7 * weight for name, weight in model.state_dict().items()}
    if part == "all":
        model.load_state_dict(pretrained, assign=assign)
    else:
        for name in ("0", "2", "4"):
            state = {key.removeprefix(f"{name}."): w for key, w in pretrained.items() if key.startswith(name)}
            model.get_submodule(name).load_state_dict(state, assign=assign)
    bounded(x)
    bounded.normalizer.project(force=True)
    assert_same(pretrained, weights_of(model))
    assert [line.bound for line in bounded.normalizer.bounds()] == pytest.approx([84.84, 21.21, 56.56], rel=1e-3)


def train(bounded, x, steps):
    optimizer = torch.optim.SGD(bounded.model.parameters(), 1e-4)
    for step in range(steps):
        bounded(x + 0.1 * randn(*x.shape, seed=step)).square().mean().mul(-1).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_training_resumes_to_the_same_bits():
    model, x = net()
    bounded = Bounded(model)
    train(bounded, x, 3)
    resumed = Bounded(net()[0])
    resumed.load_state_dict(copy.deepcopy(bounded.state_dict()))
    train(bounded, x, 3)
    train(resumed, x, 3)
    assert_same(weights_of(model), weights_of(resumed.model))
    before = weights_of(model)
    move(model, 1.2)
    bounded(x)
    assert not torch.equal(before["0.weight"] * 1.2, model[0].weight)  # and the bound does hold


# ---------------------------------------------------------------- which layers


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(4, 4), "mlp": nn.Linear(4, 4)}) for _ in "ab")
        self.pooler = nn.ModuleDict({"dense": nn.Linear(4, 4)})
        self.lstm = nn.LSTM(4, 4)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert, self.head = Bert(), nn.Linear(4, 4)


ENCODER = [f"bert.encoder.{i}.{name}" for i in (0, 1) for name in ("query", "mlp")]
ALL = [*ENCODER, "bert.pooler.dense", "head"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ALL),
        ({"only": "pooler"}, ["bert.pooler.dense"]),
        ({"only": "bert"}, ALL[:5]),
        ({"only": ["pooler", "head"]}, ALL[4:]),
        ({"only": "query"}, ["bert.encoder.0.query", "bert.encoder.1.query"]),
        ({"only": "encoder.1.*"}, ENCODER[2:]),
        ({"only": "bert.encoder.?.mlp"}, ENCODER[1::2]),
        ({"only": lambda name, module: "query" not in name}, [*ENCODER[1::2], *ALL[4:]]),
        ({"only": "encoder", "exclude": ["mlp", lambda name, module: name.endswith("0.query")]}, [ENCODER[2]]),
        ({"exclude": {"encoder", "lstm"}}, ALL[4:]),
        ({"exclude": "bert.*"}, ["head"]),
    ],
)
def test_layers_are_chosen(options, expected):
    normalizer = SpectralNormalizer(Classifier(), **options)
    assert [line.layer for line in normalizer.bounds() if line.note == ""] == expected
    assert {"excluded", "not in only"} >= {normalizer.unbounded[name] for name in ALL if name not in expected}


def test_a_full_name_means_this_module_and_no_other():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert list(SpectralNormalizer(model, only="0").norms()) == ["0"]
    assert list(SpectralNormalizer(model, only="1.0").norms()) == ["1.0"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"only": "poler"}, ValueError, r"only='poler' matches no module of the model\. Layers .* 'bert.pooler.dense'"),
        ({"only": ["head", "lstm"]}, ValueError, "only='lstm' matches no layer that could be bounded"),
        ({"only": lambda name, module: False}, ValueError, "only=<function .* matches no layer that could be bounded"),
        ({"exclude": ["head", "bert.*.x"]}, ValueError, r"exclude='bert\.\*\.x' matches no module of the model"),
        ({"exclude": [nn.Linear(2, 2)]}, TypeError, "exclude holds a Linear: expected the name of a module"),
        ({"exclude": 3}, TypeError, "exclude holds a int: expected the name of a module"),
    ],
)
def test_what_matches_nothing_is_an_error_that_says_what_there_is(options, error, message):
    with pytest.raises(error, match=message):
        SpectralNormalizer(Classifier(), **options)


# ---------------------------------------------------------------- what is shown


def test_the_table_shows_every_layer_and_what_is_not_bounded():
    model = nn.ModuleDict({"deep": scaled(nn.Linear(8, 8), 11.7), "conv": nn.Conv2d(3, 3, 3), "lstm": nn.LSTM(2, 2)})
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    model.register_parameter("raw", nn.Parameter(torch.ones(2, 2)))
    normalizer = SpectralNormalizer(model)
    table = normalizer.bounds()
    assert [(line.layer, line.note) for line in table] == [
        ("deep", ""),
        ("conv", "no input seen"),
        ("frozen", "frozen"),
        ("raw", "a parameter of ModuleDict"),
        ("lstm.weight_ih_l0", "recurrent weight"),
        ("lstm.weight_hh_l0", "recurrent weight"),
    ]
    assert table[0].sigma == pytest.approx(11.7, rel=1e-6)
    assert str(table).splitlines()[:3] == [
        "layer                sigma    bound",
        "deep                  11.7     11.8",
        "conv                     -        -  no input seen",
    ]
    assert str(pickle.loads(pickle.dumps(table))) == str(table)
    lines = [line.strip() for line in repr(normalizer).splitlines()]
    assert lines[1] == "norm_bound='initial', conv_norm='operator'"
    assert lines[3] == str(table).splitlines()[1]


def test_showing_a_normalizer_changes_nothing_of_it():
    normalizer = SpectralNormalizer(nn.Linear(4, 4))
    assert "not measured" in repr(normalizer)
    assert "initial_norm." not in normalizer.state_dict()


def test_fresh_layers_have_a_bound_of_six_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounded = Bounded(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
        bounded(randn(2, 4))
        move(bounded.model, 1.5)
        bounded(randn(2, 4))
    assert [line.bound for line in bounded.normalizer.bounds()] == [6, 6]

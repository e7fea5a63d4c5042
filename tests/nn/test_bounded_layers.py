import copy
import pickle
import warnings

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from hesitant.nn import RandomFeatureGaussianProcess, SpectralBoundWarning, SpectralNormalizer
from hesitant.nn.bounded_layers import find_layers


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Conv1D(nn.Module):
    """As transformers has it."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf, generator=seeded()))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class Raw(nn.Module):
    """As XLNet keeps its attention, and a vision transformer its positions."""

    def __init__(self):
        super().__init__()
        self.q = nn.Parameter(torch.ones(4, 2, 2))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.gamma = nn.Parameter(torch.ones(4))
        self.proj = nn.Linear(4, 4)


def test_what_is_not_bounded_is_listed_with_its_reason():
    lstm = nn.LSTM(4, 3, bidirectional=True)
    model = nn.ModuleDict(
        {
            "lstm": lstm,
            "cell": nn.GRUCell(4, 4),
            "raw": Raw(),
            "table": nn.Embedding(5, 4),
            "norms": nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4), nn.LazyBatchNorm1d()),
            "bilinear": nn.Bilinear(2, 2, 2),
            "attention": nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
            "weight_norm": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "left_out": nn.Sequential(nn.RNN(2, 2), nn.Linear(2, 2)),
            "gp": RandomFeatureGaussianProcess(4, 2, num_inducing=8),
        }
    )
    layers, unbounded = find_layers(model, exclude=["left_out"])
    assert list(layers) == ["raw.proj", "attention.out_proj"]
    assert unbounded == {
        "weight_norm": "parametrized weight",
        "left_out.1": "excluded",
        **{f"lstm.{name}": "recurrent weight" for name, p in lstm.named_parameters() if p.ndim == 2},
        "cell.weight_ih": "recurrent weight",
        "cell.weight_hh": "recurrent weight",
        "raw.q": "a parameter of Raw",
        "raw.pos_embed": "a parameter of Raw",
        "bilinear.weight": "a parameter of Bilinear",
        **{f"attention.{name}_proj_weight": "packed attention weight" for name in "qkv"},
        "left_out.0.weight_ih_l0": "excluded",
        "left_out.0.weight_hh_l0": "excluded",
    }


def test_a_conv1d_is_bounded_as_the_linear_that_it_is():
    model, x = Conv1D(6, 4), torch.randn(8, 4, generator=seeded(1))
    linear = nn.Linear(4, 6)
    with torch.no_grad():
        linear.weight.copy_(model.weight.T)
        linear.bias.zero_()
    for each in (model, linear):
        with pytest.warns(SpectralBoundWarning, match="about to shrink 1 of 1 layers"):
            SpectralNormalizer(each, 0.5).project()
    assert float(torch.linalg.matrix_norm(model.weight.detach(), 2)) == pytest.approx(0.5, rel=1e-2)
    torch.testing.assert_close(model(x), linear(x), rtol=1e-3, atol=1e-4)


def test_gpt2s_layers_are_bounded():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    normalizer = SpectralNormalizer(nn.Sequential(pytorch_utils.Conv1D(12, 4), nn.GELU(), pytorch_utils.Conv1D(4, 12)))
    normalizer.project()
    assert set(normalizer.norms()) == {"0", "2"}
    assert normalizer.unbounded == {}


@pytest.mark.parametrize("model", [nn.LSTM(4, 3), nn.ModuleList([nn.Embedding(5, 4), nn.GRU(4, 4)])])
def test_a_model_of_which_nothing_is_bounded_is_said_to_be_one(model):
    with pytest.warns(SpectralBoundWarning, match=r"bounds no weight .*recurrent weight.*norm_bound=None"):
        SpectralNormalizer(model)


def test_where_nothing_is_left_out_or_it_was_asked_for_nothing_is_said():
    for model in (nn.Identity(), nn.Embedding(5, 4), RandomFeatureGaussianProcess(4, 2, num_inducing=8)):
        assert SpectralNormalizer(model).unbounded == {}
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3))
    SpectralNormalizer(model, exclude=["0", "1"])


# ---------------------------------------------------------------- sent elsewhere


class Bounded(nn.Module):
    def __init__(self, generator=None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 4))
        self.gp = RandomFeatureGaussianProcess(4, 2, num_inducing=8, kernel_scale="median", generator=seeded())
        self.normalizer = SpectralNormalizer(self.body, 0.2, warm_up_iterations=0, generator=generator)
        with torch.no_grad():
            for parameter in self.body.parameters():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=seeded(3)))

    def forward(self, x):
        if self.training:
            self.normalizer.project()
        return self.gp(self.body(x))


def images():
    return torch.randn(8, 1, 6, 6, generator=seeded(2))


def fitted():
    model = Bounded(seeded(7))
    model(images())
    model.eval()
    with torch.no_grad():
        model.gp.update(model.body(images()))
    return model


def test_nothing_of_it_needs_a_generator():
    model = fitted()
    held = [model.normalizer.__dict__, model.gp.__dict__, model.gp.laplace.__dict__, model.gp.scale.__dict__]
    assert not [value for state in held for value in state.values() if isinstance(value, torch.Generator)]
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(images()), model(images()))


def test_a_fresh_normalizer_draws_the_same_wherever_it_is():
    first, other = Bounded(seeded(7)), Bounded(seeded(8))
    twin = pickle.loads(pickle.dumps(first))
    again = copy.deepcopy(first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectralBoundWarning)
        for model in (first, other, twin, again):
            model.body(images())
            model.normalizer.project()
    for name, (u, _) in first.normalizer.vectors().items():
        assert torch.equal(u, twin.normalizer.vectors()[name][0])
        assert torch.equal(u, again.normalizer.vectors()[name][0])
        assert not torch.equal(u, other.normalizer.vectors()[name][0])


def answer(index, model, path):
    torch.set_num_threads(1)
    model.normalizer.project()
    torch.save((model(images()), model.gp.covariance_state), path)


@pytest.mark.slow
def test_it_can_be_sent_to_a_spawned_process(tmp_path):
    model = fitted()
    mp.spawn(answer, (model, tmp_path / "answer"), nprocs=1)
    there, state = torch.load(tmp_path / "answer")
    assert state == "fitted"
    assert torch.equal(there, model(images()))

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.leaving import leave
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from hesitant.nn import RandomFeatureGaussianProcess
from hesitant.nn.kernel_scale import KernelScale

ModelEmaV3 = pytest.importorskip("timm.utils").ModelEmaV3

D = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(num=30, seed=1):
    return 4 * torch.randn(num, D, generator=seeded(seed))


def layer(**options):
    options = {"num_inducing": 16, "kernel_scale": "median", "generator": seeded(), **options}
    return RandomFeatureGaussianProcess(D, 2, **options)


def median(x):
    return float(torch.pdist(x.double()).square().median())


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D))
        self.gp = layer(**options)

    def forward(self, x):
        return self.gp(self.body(x))


# ---------------------------------------------------------------- what decides


def test_a_given_scale_is_kept_to_rounding():
    for scale in (1.0, 2.0, 1e-30, 3.7, 1e30):
        kept = KernelScale(scale, D)
        assert kept.is_decided()
        assert kept.decide(inputs())
        assert float(kept.log(torch.float32)) == pytest.approx(math.log(scale), rel=1e-6)
        assert float(kept.log(torch.float64)) == pytest.approx(math.log(scale), rel=1e-15, abs=1e-15)


def test_the_first_training_data_decides():
    for decide in (
        lambda gp, x: gp(x),
        lambda gp, x: gp.update(x),
        lambda gp, x: gp.eval().contribution(x),
        lambda gp, x: gp.decide(x),
    ):
        gp, x = layer(), inputs()
        decide(gp, x)
        assert gp.kernel_scale == pytest.approx(median(x), rel=1e-12)
        gp.train()(10 * x)
        gp.decide(10 * x)
        assert gp.kernel_scale == pytest.approx(median(x), rel=1e-12)


@pytest.mark.filterwarnings("ignore:the covariance is not fitted")
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_look_at_shapes_decides_nothing(momentum):
    gp, x = layer(momentum=momentum), inputs()
    tiny = 1e-4 * inputs(2)
    gp.eval()(tiny)
    gp(tiny).sum().backward()
    with torch.no_grad():
        gp.train()(tiny)
    gp(torch.zeros(2, D))
    gp(tiny[:1])
    assert math.isnan(gp.kernel_scale)
    assert gp.covariance_state == "none"
    gp(x)
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-12)
    assert gp.covariance_state == ("none" if momentum is None else "fitted")


@pytest.mark.filterwarnings("ignore:the covariance is not fitted")
@pytest.mark.parametrize("training", [True, False])
def test_an_untrained_layer_answers_any_input(training):
    gp, given = layer().train(training), layer(kernel_scale=float(D))
    for x in (torch.zeros(2, D), torch.ones(1, D), torch.zeros(0, D), inputs(5)):
        with torch.no_grad():
            answer = gp(x)
        assert torch.equal(answer, given.mean(x))  # in_features stands in
        assert math.isnan(gp.kernel_scale)


@pytest.mark.parametrize("alike", [inputs(1), torch.ones(7, D), torch.full((2, D), math.nan)])
def test_a_batch_that_cannot_decide_leaves_it_to_a_later_one(alike):
    gp, x = layer(), inputs()
    gp(alike).sum().backward()
    assert math.isnan(gp.kernel_scale)
    gp(x)
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-12)
    if bool(alike.isfinite().all()):
        with pytest.raises(ValueError, match=r"at least two different inputs in the first batch, and got x of shape"):
            layer().update(alike)  # sums over different kernels do not add up


def test_a_running_covariance_waits_for_the_scale():
    gp, x = layer(momentum=1.0), inputs()
    gp(x[:1])
    assert gp.covariance_state == "none"
    gp(x)
    assert float(gp.laplace.num_seen) == 30


def test_a_learned_change_leaves_the_median_as_it_is():
    gp, x = layer(train_kernel_scale=True), inputs()
    gp(x).square().sum().backward()
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-12)
    assert gp.scale.log_change.grad.abs() > 0
    torch.optim.SGD(gp.parameters(), 0.1).step()
    assert gp.kernel_scale == pytest.approx(median(x) * float(gp.scale.log_change.detach().exp()), rel=1e-6)


def test_an_undecided_state_dict_is_decided_later():
    gp, other, x = layer(kernel_scale=2.0), layer(), inputs()
    gp.load_state_dict(other.state_dict())
    assert math.isnan(gp.kernel_scale)
    gp(x)
    other.load_state_dict(gp.state_dict())
    other(10 * x)
    assert other.kernel_scale == gp.kernel_scale == pytest.approx(median(x), rel=1e-12)


# ---------------------------------------------------------------- copies and averages


AVERAGES = {
    "swa": lambda model: AveragedModel(model),
    "swa with buffers": lambda model: AveragedModel(model, use_buffers=True),
    "ema": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99)),
    "ema with buffers": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True),
    "swa at once": lambda model: AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn()),
    "timm": lambda model: ModelEmaV3(model, decay=0.99),
    "timm without foreach": lambda model: ModelEmaV3(model, decay=0.99, foreach=False),
    "timm without buffers": lambda model: ModelEmaV3(model, decay=0.99, exclude_buffers=True),
}


@pytest.mark.filterwarnings("ignore:the covariance is not fitted")
@pytest.mark.parametrize(
    ("kind", "trained"), [*((kind, False) for kind in AVERAGES), *((kind, True) for kind in ("swa", "ema", "timm"))]
)
def test_an_average_begun_before_the_first_forward_has_the_models_scale(kind, trained):
    torch.manual_seed(0)
    model = Net(train_kernel_scale=trained)
    average = AVERAGES[kind](model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for number in range(4):
        average.module.eval()(1e-3 * inputs(8))  # validated meanwhile: decides nothing
        optimizer.zero_grad()
        model(inputs(30, number)).square().sum().backward()
        optimizer.step()
        (average.update if isinstance(average, ModelEmaV3) else average.update_parameters)(model)
    # Where integers are averaged too, they come through float32.
    base = math.exp(float(model.gp.scale.code) * 2.0**-52)
    assert math.exp(float(average.module.gp.scale.code) * 2.0**-52) == pytest.approx(base, rel=1e-5)
    if not trained:
        assert average.module.gp.kernel_scale == pytest.approx(model.gp.kernel_scale, rel=1e-5)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in average.state_dict().values())
    assert bool(torch.isfinite(average.module.eval()(inputs())).all())
    average.module.train()(100 * inputs())  # trained on, it keeps the scale that it has
    assert math.exp(float(average.module.gp.scale.code) * 2.0**-52) == pytest.approx(base, rel=1e-5)


@pytest.mark.filterwarnings("ignore:the covariance is not fitted")
def test_a_copy_in_eval_mode_decides_nothing():
    twin = copy.deepcopy(layer()).eval()
    twin(inputs())
    assert math.isnan(twin.kernel_scale)


# ---------------------------------------------------------------- several workers


def work(rank, workers, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    scales = []
    for batches in ([inputs(20, rank)], [inputs(1, rank), inputs(20, rank)], [inputs(1 if rank else 20, rank)]):
        gp = layer(momentum=1.0)
        for batch in batches:
            gp(batch)
        scales.append((gp.kernel_scale, float(gp.laplace.num_seen)))
    torch.save(scales, f"{folder}/{rank}")
    leave()


@pytest.mark.slow
def test_workers_agree_also_where_one_cannot_decide(tmp_path):
    mp.spawn(work, (2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert first == second
    medians = [median(inputs(20, rank)) for rank in range(2)]
    both = math.sqrt(medians[0] * medians[1])
    assert [scale for scale, _ in first] == pytest.approx([both, both, medians[0]], rel=1e-9)
    assert [seen for _, seen in first] == [40, 40, 21]  # what could not decide was not counted


# ---------------------------------------------------------------- a scale that follows


def steps(gp, batches):
    """Training forwards, each after a step of an optimizer."""
    optimizer = torch.optim.SGD(gp.parameters(), lr=0.0)
    for x in batches:
        gp.train()(x).sum().backward()
        optimizer.step()


def test_a_running_median_begins_with_the_first_batch_and_ends_where_the_inputs_do():
    gp, x = layer(kernel_scale="running_median"), inputs(64)
    steps(gp, [x])
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-9)
    steps(gp, [5 * x] * 400)
    assert gp.kernel_scale == pytest.approx(25 * median(x), rel=1e-2)


def test_it_is_a_moving_average_of_logarithms():
    gp, first, then = layer(kernel_scale="running_median"), inputs(64), 3 * inputs(64, seed=2)
    steps(gp, [first, then])
    expected = 0.98 * math.log(median(first)) + 0.02 * math.log(median(then))
    assert math.log(gp.kernel_scale) == pytest.approx(expected, rel=1e-5)


def test_it_does_not_shrink_with_the_inputs():
    gp, x = layer(kernel_scale="running_median"), inputs(64)
    steps(gp, [x] + [0.2 * x] * 400)
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-9)
    steps(gp, [x] * 100)  # nor is it pushed up by what only comes back
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-9)


def test_the_chance_of_batches_moves_it_little():
    """It is the largest of an average, not of the batches."""
    gp = layer(kernel_scale="running_median")
    batches = [inputs(16, seed=seed) for seed in range(500)]
    steps(gp, batches)
    medians = torch.tensor([math.log(median(x)) for x in batches])
    assert float(medians.max() - medians.mean()) > 0.35
    first = float(medians[0] - medians.mean())
    assert math.log(gp.kernel_scale) - float(medians.mean()) < max(first, 0.0) + 0.15


def test_it_stays_where_no_optimizer_has_stepped():
    gp, x = layer(kernel_scale="running_median"), inputs(64)
    for _ in range(3):
        gp.train()(x)
        gp.train()(9 * x)
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-9)
    gp.update(x)
    steps(gp, [x])  # what was fitted is stale now
    gp.reset_covariance()
    gp.update(x)
    gp.train()(9 * x)
    assert gp.covariance_state == "fitted"
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-9)


@pytest.mark.filterwarnings("ignore:the covariance is not fitted")
def test_an_evaluation_and_a_look_at_shapes_do_not_move_it():
    gp, x = layer(kernel_scale="running_median"), inputs(64)
    steps(gp, [x])
    gp.eval()(9 * x)
    with torch.no_grad():
        gp.train()(9 * x)
    assert gp.kernel_scale == pytest.approx(median(x), rel=1e-9)


@pytest.mark.parametrize("odd", [torch.ones(8, D), torch.full((8, D), math.nan), torch.full((8, D), 1e30)])
def test_inputs_that_say_nothing_do_not_move_it(odd):
    gp, x = layer(kernel_scale="running_median"), inputs(64)
    steps(gp, [x, x])
    before = gp.kernel_scale
    with torch.no_grad():
        gp.follow(odd)
    assert gp.kernel_scale == before


def test_features_that_grow_as_a_whole_stay_as_they_are():
    gp, x = layer(kernel_scale="running_median"), inputs(64)
    steps(gp, [x])
    before = gp.features(x)
    steps(gp, [7 * x] * 800)
    torch.testing.assert_close(gp.features(7 * x), before, rtol=1e-3, atol=1e-3)

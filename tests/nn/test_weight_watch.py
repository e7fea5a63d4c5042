import copy
import gc
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from hesitant.nn import WeightWatch


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)))


def trusting(module, without=""):
    watch = WeightWatch()
    watch.trusts(module, without)
    return watch


def step(model, **options):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
    model(torch.randn(6, 4)).sum().backward()
    optimizer.step()


@torch.no_grad()
def write_in_place(model):
    model[0].weight[1, 2] += 1


@torch.no_grad()
def swap_all(model):
    for parameter in model.parameters():
        parameter.copy_(parameter.roll(1, 0))


def write_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.01)


def write_numpy(model):
    for parameter in model.parameters():
        parameter.detach().numpy()[...] *= np.float32(1.01)


def set_data(model):
    model[3][1].weight.data = model[3][1].weight.data.clone()


def replace_parameter(model):
    model[3][0].weight = nn.Parameter(model[3][0].weight.detach().clone())


def replace_layer(model):
    model[3][0] = nn.Linear(8, 8)


def statistics(model):
    with torch.no_grad():
        model.train()(torch.randn(6, 4))


MOVES = {
    "step": step,
    "fused step": lambda model: step(model, fused=True),
    "write in place": write_in_place,
    "swap of all": swap_all,
    "write through .data": write_data,
    "write through numpy": write_numpy,
    ".data set": set_data,
    "parameter replaced": replace_parameter,
    "layer replaced": replace_layer,
    "statistics of a BatchNorm": statistics,
    "cast": lambda model: model.double(),
    "loaded": lambda model: model.load_state_dict(network().state_dict()),
    "assigned": lambda model: model.load_state_dict(network().state_dict(), assign=True),
}


@pytest.mark.parametrize("move", MOVES)
def test_whatever_moves_the_weights_is_suspected(move):
    model = network()
    watch = trusting(model)
    model.eval()(torch.randn(6, 4))
    model.requires_grad_(False).requires_grad_(True)
    model.state_dict()
    assert not watch.suspects(model)  # nothing has happened
    MOVES[move](model)
    assert watch.suspects(model)
    assert watch.suspects(model)  # to ask is not to trust
    watch.trusts(model)
    assert not watch.suspects(model)


def test_trusting_answers_whether_the_weights_showed_that_they_moved():
    model = network()
    watch = WeightWatch()
    assert not watch.trusts(model)  # nothing was known
    step(network())  # another model's
    assert watch.raised
    assert not watch.has_moved(model)
    assert not watch.trusts(model)
    write_in_place(model)
    assert watch.trusts(model)


def test_another_place_in_memory_is_suspected_but_no_evidence():
    model = network()
    watch = trusting(model)
    for parameter in model.parameters():
        parameter.share_memory_()  # as a model is that is sent to another process
    assert watch.suspects(model, read=False)
    assert not watch.has_moved(model, read=False)
    assert not watch.trusts(model)
    model[3][1].weight.data = 2 * model[3][1].weight.data
    assert watch.has_moved(model, read=False)
    model[3][1] = nn.Linear(1, 3)
    assert watch.trusts(model)


def test_a_step_anywhere_raises_every_watch_until_it_trusts_again():
    first, second = network(), network()
    watches = [trusting(first), trusting(second)]
    step(network())
    assert all(watch.raised for watch in watches)
    watches[0].trusts(first)
    assert [watch.raised for watch in watches] == [False, True]


def test_suspicion_can_be_raised_and_everything_forgotten():
    model = network()
    watch = trusting(model)
    watch.raise_suspicion()
    assert watch.suspects(model)
    watch.trusts(model)
    watch.forget()
    assert watch.suspects(model)
    assert watch.has_moved(model)
    assert not watch.trusts(model)


def test_a_submodule_can_be_left_out():
    model = network()
    for name in ("3.1", "3.1."):
        watch = trusting(model, name)
        set_data(model)
        assert not watch.suspects(model, name)
        replace_parameter(model)
        assert watch.suspects(model, name)


def test_numbers_are_read_only_where_asked():
    model = network()
    watch = trusting(model)
    write_data(model)
    assert not watch.suspects(model, read=False)
    assert watch.suspects(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda watch: pickle.loads(pickle.dumps(watch))])
def test_a_copy_begins_suspicious_and_is_raised_by_steps(copied):
    model = network()
    twin = copied(trusting(model))
    assert twin.suspects(model)
    twin.trusts(model)
    assert not twin.suspects(model)
    step(network())
    assert twin.raised


def test_a_module_may_be_odd():
    model = network()
    model.append(model[0])  # twice in it
    model.loop = [model]
    model[0].bias = None
    model.register_buffer("count", torch.tensor(3))
    model.register_buffer("cache", torch.zeros(3), persistent=False)
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 4)))
    model.register_parameter("turned", nn.Parameter(torch.randn(5, 3).t()))
    model.register_parameter("part", nn.Parameter(torch.randn(5, 3)[:, 1]))
    model.register_parameter("narrow", nn.Parameter(torch.randn(3, dtype=torch.bfloat16)))
    model.register_buffer("nan", torch.full((3,), torch.nan))
    model.append(nn.LazyLinear(3))
    model.append(nn.Linear(2, 2, device="meta"))
    with torch.inference_mode():
        model.append(nn.Linear(2, 2))
    watch = trusting(model)
    model.cache = torch.ones(3)  # no part of what is saved
    assert not watch.suspects(model)
    model.nan.data.fill_(1)
    assert watch.suspects(model)


def test_a_watch_keeps_no_model_and_none_keeps_it():
    import weakref

    model = network()
    watch = trusting(model)
    weight, ended = weakref.ref(model[0].weight), weakref.ref(watch)
    del model
    gc.collect()
    assert weight() is None
    del watch
    gc.collect()
    assert ended() is None
    step(network())

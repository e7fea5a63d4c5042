import asyncio
import sys
import threading

import pytest
import torch
from torch import nn

from hesitant.nn import RandomFeatureGaussianProcess, recorded

D = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(num=8, seed=1):
    return torch.randn(num, D, generator=seeded(seed))


def fitted(**options):
    gp = RandomFeatureGaussianProcess(D, 2, num_inducing=16, generator=seeded(), **options)
    gp.update(inputs(40, 0))
    return gp.eval()


@pytest.fixture
def fast_switching():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_a_call_in_eval_mode_is_recorded_with_its_gaussian():
    gp, x = fitted(), inputs()
    with recorded() as calls:
        answer = nn.Sequential(nn.Identity(), gp)(x)
    (call,) = calls
    expected = gp.posterior(x)
    assert call.layer is gp
    assert torch.equal(call.inputs, x)
    assert call.output is answer
    assert torch.equal(call.posterior.mean, expected.mean)
    assert torch.equal(call.posterior.variance, expected.variance)
    gp(x)
    assert len(calls) == 1  # outside of it nothing is


def test_plain_logits_have_no_gaussian():
    gp, x = fitted(), inputs()
    gp.train()
    with recorded() as calls:
        answer = gp(x)
    assert calls[0].posterior is None
    assert calls[0].output is answer
    assert torch.equal(answer, gp.mean(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_plain_recording_leaves_nothing_behind(training, momentum):
    x = inputs()
    unfitted = RandomFeatureGaussianProcess(
        D, 2, num_inducing=16, kernel_scale="median", momentum=momentum, generator=seeded()
    )
    for gp in (unfitted, fitted(momentum=momentum)):
        gp.train(training)
        before = {name: tensor.clone() for name, tensor in gp.state_dict().items()}
        with recorded(plain=True) as calls:
            answer = gp(x)  # a warning would be an error here
        assert torch.equal(answer, gp.mean(x))
        assert calls[0].posterior is None
        assert calls[0].output is answer
        assert gp.laplace.factor is None
        for name, tensor in gp.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_layers_answer_what_they_are_given():
    gp, x = fitted(), inputs()
    given = [torch.full((8, 2), 1.0), torch.full((8, 2), 2.0)]
    with recorded(answering=given) as calls:
        answers = [3 * gp(x), gp.train()(x)]
        with pytest.raises(ValueError, match=r"answering holds 2 tensors, and the model calls its Gaussian"):
            gp(x)
    assert torch.equal(answers[0], 3 * given[0])
    assert answers[1] is given[1]
    assert [call.output for call in calls] == given
    assert gp.covariance_state == "fitted"


def test_what_is_written_over_the_inputs_later_is_not_recorded():
    gp, x = fitted(), inputs()
    before = x.clone()
    with recorded() as calls:
        gp(x)
        x.zero_()
    assert torch.equal(calls[0].inputs, before)


def test_nested_recordings_do_not_meet():
    gp = fitted()
    with recorded() as outer:
        gp(inputs(2))
        with recorded(plain=True) as inner:
            gp(inputs(3))
        gp(inputs(4))
    assert [len(call.inputs) for call in outer] == [2, 4]
    assert [len(call.inputs) for call in inner] == [3]
    with pytest.raises(KeyboardInterrupt), recorded() as calls:
        raise KeyboardInterrupt
    gp(inputs(2))
    assert calls == []


def test_threads_get_their_own_calls_alone(fast_switching):
    gp, wrong, turns = fitted(), [], 150
    gp.factorize()

    def ask(seed):
        x = inputs(seed + 2, seed)
        expected = gp.posterior(x).variance
        for _ in range(turns):
            with recorded() as calls:
                gp(x)
            if len(calls) != 1 or not torch.equal(calls[0].posterior.variance, expected):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_tasks_get_their_own_calls_alone():
    gp = fitted()

    async def ask(num):
        with recorded() as calls:
            for _ in range(5):
                gp(inputs(num))
                await asyncio.sleep(0)
        return [len(call.inputs) for call in calls]

    async def all_of_them():
        return await asyncio.gather(ask(2), ask(3), asyncio.to_thread(gp, inputs(4)))

    first, second, _ = asyncio.run(all_of_them())
    assert first == [2] * 5
    assert second == [3] * 5


def test_what_is_compiled_is_one_graph_and_records_nothing():
    gp, x = fitted(), inputs()
    gp.factorize()
    torch._dynamo.reset()  # other tests may have compiled as many forwards as torch keeps
    compiled = torch.compile(gp, backend="eager", fullgraph=True)
    with recorded() as calls:
        answer = compiled(x)
    assert calls == []
    torch.testing.assert_close(answer, gp(x))

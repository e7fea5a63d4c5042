import pytest
import torch

from hesitant import DeepEnsemble
from hesitant.inputs import Batch
from hesitant.methods.members.given_batch import GivenBatch

CPU = torch.device("cpu")


def test_members_that_only_read_share_one_copy():
    x = torch.ones(3, 2)
    given = GivenBatch(Batch((x,)))
    first = given.on(CPU)
    assert given.on(CPU) is first
    assert first.args[0] is not x


@pytest.mark.parametrize("view", [False, True])
def test_a_write_is_for_the_writer_alone(view):
    x = torch.ones(3, 2)
    given = GivenBatch(Batch((), {"x": x, "flag": True}))
    mine = given.on(CPU).kwargs["x"]
    (mine.view(-1) if view else mine).mul_(5)
    after = given.on(CPU)
    assert torch.equal(after.kwargs["x"], torch.ones(3, 2))
    assert after.kwargs["flag"] is True
    assert torch.equal(x, torch.ones(3, 2))


def test_in_inference_mode_each_has_its_own():
    with torch.inference_mode():
        given = GivenBatch(Batch((torch.ones(3, 2),)))
        given.on(CPU).args[0].mul_(5)
        assert torch.equal(given.on(CPU).args[0], torch.ones(3, 2))


def test_an_ensemble_whose_members_write_to_their_inputs_answers_as_each_alone():
    class Writer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 3)

        def forward(self, x):
            return self.linear(x.mul_(2))

    members, x = [Writer(), Writer(), Writer()], torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    samples = DeepEnsemble(members).eval().predict_samples(x, batch_size=3)
    assert torch.equal(x, before)
    with torch.no_grad():
        alone = torch.stack([member(x.clone()).softmax(-1) for member in members])
    torch.testing.assert_close(samples, alone)

import torch

from hesitant.inputs import Batch, num_inputs

X = torch.arange(10.0).unsqueeze(1)


def test_a_batch_moves_its_nested_tensors() -> None:
    moved = Batch(([X, {"a": [X]}],), {"b": X, "flag": 3}, X).to(torch.device("meta"))
    inner = moved.args[0]
    assert {inner[0].device.type, inner[1]["a"][0].device.type, moved.kwargs["b"].device.type} == {"meta"}
    assert moved.kwargs["flag"] == 3
    assert moved.targets is not None
    assert moved.targets.device.type == "meta"


def test_how_many_inputs_there_are_is_told_by_targets_or_by_tensors_that_agree() -> None:
    assert Batch((X, X)).num_inputs == 10
    assert Batch((X, torch.zeros(2, 30)), targets=torch.zeros(4)).num_inputs == 4
    graph = Batch((X, torch.zeros(2, 30)))
    assert graph.num_inputs is None
    assert num_inputs(graph) == 10


def test_some_inputs_of_a_divisible_batch_are_taken_with_their_targets():
    batch = Batch((torch.arange(4.0), [torch.arange(8.0).view(4, 2)]), {"scale": torch.tensor(2.0)}, torch.arange(4))
    assert batch.is_divisible
    part = batch.take(torch.tensor([3, 1]))
    assert part.args[0].tolist() == [3, 1]
    assert part.args[1][0].tolist() == [[6, 7], [2, 3]]
    assert part.kwargs["scale"] == 2
    assert part.targets.tolist() == [3, 1]


def test_what_has_no_entry_an_input_cannot_be_divided():
    whole = Batch((torch.zeros(4, 2), ["a", "b", "c", "d"]), {}, torch.zeros(4))
    other_length = Batch((torch.zeros(4, 2), torch.zeros(3)), {}, torch.zeros(4))
    assert not whole.is_divisible
    assert not other_length.is_divisible
    assert not Batch((torch.zeros(4),)).is_divisible  # without targets

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

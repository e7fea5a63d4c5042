import copy
import inspect
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesitant import SNGP, Deterministic


class Model(nn.Module):
    main_input_name = "pixels"

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(2, 3)

    def forward(self, pixels: Tensor, scale: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
        return self.classifier(pixels * scale)

    def describe(self) -> str:
        return "a model"


def wrapped(kind: type) -> Any:
    return SNGP(Model(), kernel_scale=1.0) if kind is SNGP else kind(Model())


kinds = pytest.mark.parametrize("kind", [SNGP, Deterministic])


def saved_and_loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@kinds
def test_forward_keeps_the_signature_of_the_model(kind: type) -> None:
    for wrapper in (wrapped(kind), copy.deepcopy(wrapped(kind)), saved_and_loaded(wrapped(kind))):
        assert list(inspect.signature(wrapper.forward).parameters) == ["pixels", "scale", "mask"]
        assert inspect.signature(wrapper.forward) == inspect.signature(Model().forward)


@kinds
def test_a_copy_runs_its_own_model(kind: type) -> None:
    original = wrapped(kind)
    for other in (copy.deepcopy(original), saved_and_loaded(original)):
        other.train()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
            assert other(torch.ones(1, 2)).abs().sum() == 0
            assert original.train()(torch.ones(1, 2)).abs().sum() > 0


@kinds
def test_attributes_that_the_wrapper_lacks_are_the_models(kind: type) -> None:
    wrapper = wrapped(kind)
    assert wrapper.main_input_name == "pixels"
    assert wrapper.describe() == "a model"
    assert not hasattr(wrapper, "nowhere")
    with pytest.raises(AttributeError, match="nowhere"):
        _ = wrapper.nowhere


@pytest.mark.parametrize("kind", [SNGP, Deterministic])
def test_what_is_no_module_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"model is a function: expected a torch.nn.Module"):
        kind(lambda x: x)

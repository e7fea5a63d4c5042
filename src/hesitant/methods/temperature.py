"""A temperature: one number that sharpens or softens all that a method answers."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.methods.saving import SavedMethod

_KEY = "temperature"


class Tempered(SavedMethod):
    r"""A method with a temperature T, which divides the logits of every distribution that its answer is made of.

    Of a probability that is ``p^(1/T)``, divided by the sum over the classes. The logits of a plain model are divided
    by it, those of each dropout pass, draw or member before these are averaged, and a temperature multiplies those of
    the members within: an answer stays the mean of the distributions that its uncertainty is split by. Above 1 it
    softens, below 1 it sharpens; 1 changes no bit. Training mode knows no temperature.

    A state dict holds the temperature, in float64, if it is not 1; one without it is that of a model whose temperature
    is 1, which loading it sets.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML.
    """

    _temperature: float = 1.0

    @property
    def temperature(self) -> float:
        """T, positive, which divides the logits of every distribution that the answer is made of.

        Above 1 it softens, below 1 it sharpens, 1 changes no bit; training mode knows no temperature.
        :func:`hesitant.calibrate` fits it, and a state dict holds it. Set by hand it belongs to no data.
        """
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if isinstance(value, bool) or not 0 < number < math.inf:
            raise ValueError(f"temperature={value!r} is no positive, finite number: 1.0 changes nothing.")
        self._temperature = number

    def calibration_state(self) -> tuple[Any, ...]:
        """Answers what tells this method's scores from those of another: its kind, its temperature, what it sets."""
        return type(self).__name__, self._temperature

    def forget_calibration(self) -> None:
        """Sets the temperature to 1; those of members stay."""
        self.temperature = 1.0

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._temperature != 1:
            destination[prefix + _KEY] = torch.tensor(self._temperature, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.forget_calibration()
        saved = taken(state_dict, prefix + _KEY, args)
        if saved is not None:
            self.temperature = saved


def forget_calibrations(model: nn.Module) -> None:
    """Has every method in a model forget its calibration, which belongs to the weights as they were."""
    for module in model.modules():
        if isinstance(module, Tempered):
            module.forget_calibration()


def taken(state_dict: Any, key: str, args: tuple[Any, ...]) -> float | None:
    """Answers a number of a state dict that is no parameter and no buffer, while it is being loaded.

    Args:
        state_dict: The state dict.
        key: Of the number.
        args: What ``_load_from_state_dict`` is given after the prefix: the fourth lists the unexpected keys.
    """
    if key not in state_dict:
        return None
    unexpected: list[str] = args[3]
    if key in unexpected:
        unexpected.remove(key)
    return float(state_dict[key])


def tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """Answers the log-probabilities ``(..., C)`` of ``p^(1/T)``, divided by the sum over the classes."""
    return log_probs if temperature == 1 else torch.log_softmax(log_probs / temperature, -1)

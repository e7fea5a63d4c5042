"""The plain model, answering with a Prediction."""

from collections.abc import Iterable
from typing import Any

from hesitant.inputs import Batch, as_class_targets, batches
from hesitant.methods.calibration_digest import calibration_digest
from hesitant.methods.outputs import require_kind
from hesitant.methods.random_state import require_seed
from hesitant.methods.replica import in_eval_mode
from hesitant.methods.wrapper import Gathered, ModelWrapper, device_of, prediction_of
from hesitant.prediction import Prediction

_NO_SPLIT = (
    "a deterministic model answers with one distribution, which cannot be split into aleatoric and epistemic parts:"
    ' predict with MCDropout, a DeepEnsemble, or SNGP and posterior="monte_carlo".'
)


class Deterministic(ModelWrapper):
    """Answers with the softmax of the plain model: the baseline that the other methods are compared with.

    Example:
        >>> import torch
        >>> from hesitant import Deterministic
        >>> Deterministic(torch.nn.Linear(2, 3)).predict(torch.zeros(4, 2)).probs.shape
        torch.Size([4, 3])

    Args:
        model: A classifier that answers logits ``(B, C)`` or a single logit, as a tensor or as the ``logits`` of an
            object or dict.
        temperature: What divides the logits in eval mode (see :attr:`temperature`), but not ``prediction.logits``.
        outputs: ``"probabilities"`` for a model that ends in a softmax or a sigmoid, else ``"logits"``.
    """

    def predict(self, inputs: Any, *, seed: int = 0, batch_size: int | None = None) -> Prediction:
        """Answers the Prediction for inputs of any length, in eval mode, in batches.

        Args:
            inputs: A tensor, a list or a dict of several, ``(inputs, targets)``, a Dataset, a DataLoader, a list of
                examples (see :func:`hesitant.inputs.understood`).
            seed: Of what draws, not negative; here nothing does.
            batch_size: Inputs in one forward pass; None chooses by their size.

        Raises:
            ValueError: The inputs are empty, the model's output is not ``(B, C)``, or is not what ``outputs`` says, or
                an argument is out of its range.
            TypeError: The inputs, or the model's output, are of an unknown type.
        """
        answer = self.answer(batches(inputs, batch_size), temperature=self.temperature, seed=seed)
        return answer.with_calibration(calibration_digest(self))

    def answer(self, given: Iterable[Batch], *, temperature: float, seed: int) -> Prediction:
        """Answers the Prediction for batches, at a temperature in place of the method's own."""
        require_seed(seed)
        model, device = in_eval_mode(self.model), device_of(self.model)
        outputs, targets = Gathered(), Gathered()
        for batch in given:
            outputs.append(self.output_of(model, batch.to(device)))
            targets.append(as_class_targets(batch.targets))
        output = outputs.tensor()
        assert output is not None
        require_kind(output, self.outputs, self.model)
        return prediction_of(
            output, self.outputs, targets.tensor(), temperature=temperature, split_unavailable=_NO_SPLIT
        )

"""The plain model, answering with a Prediction."""

from typing import Any

from hesitant.methods.batches import batches, logits_of
from hesitant.methods.served import Served
from hesitant.methods.wrapper import Gathered, ModelWrapper, evaluating, prediction_of
from hesitant.prediction import Prediction

_NO_SPLIT = (
    "a deterministic model answers with one distribution, which cannot be split into aleatoric and epistemic parts:"
    ' predict with MCDropout, a DeepEnsemble, or SNGP and posterior="monte_carlo".'
)


class Deterministic(ModelWrapper):
    """Answers with the softmax of the plain model: the baseline that the other methods are compared with.

    Args:
        model: A classifier that answers logits ``(B, C)`` (or a single logit, or probabilities), as a tensor or as the
            ``logits`` of an object or dict.
        temperature: What divides the logits in eval mode (see :class:`Tempered`), but not ``prediction.logits``.
    """

    def predict(self, inputs: Any, *, batch_size: int = 1024) -> Prediction:
        """Answers the Prediction for inputs of any length, in eval mode, in batches.

        Args:
            inputs: What the model takes (a tensor, several, a dict of them), a Dataset or a DataLoader. Targets come
                as the last entry of a tuple in a Dataset, or as ``labels`` in a dict.
            batch_size: Inputs in one forward pass.

        Raises:
            ValueError: The inputs are empty, or the model's output is not ``(B, C)``.
            TypeError: The inputs, or the model's output, are of an unknown type.
        """
        outputs, targets, served = Gathered(), Gathered(), Served(self)
        with evaluating(self) as device:
            for batch in batches(inputs, batch_size):
                served.append(batch)
                batch = batch.to(device)
                outputs.append(logits_of(self.model(*batch.args, **batch.kwargs)))
                targets.append(batch.targets)
        output = outputs.tensor()
        assert output is not None
        prediction = prediction_of(output, targets.tensor(), temperature=self.temperature, split_unavailable=_NO_SPLIT)
        return prediction.with_served(served.tensor(len(prediction)))

"""What a model with a Gaussian process answers to all batches, with the Gaussian of its logits."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from hesitant.inputs import Batch, as_class_targets
from hesitant.methods.gaussian_head.posterior_of_answer import posterior_of
from hesitant.methods.replica import in_eval_mode
from hesitant.methods.wrapper import Gathered, ModelWrapper, device_of
from hesitant.nn import GaussianLogits, NearestNeighbors, recorded


class Answers(NamedTuple):
    """What was gathered of N inputs.

    Attributes:
        output: The model's, ``(N, C)``.
        gaussian: Of its logits.
        targets: Where they are known.
        distances: To the nearest training inputs, ``(N,)``, where they are asked for.
    """

    output: Tensor
    gaussian: GaussianLogits
    targets: Tensor | None
    distances: Tensor | None


def gathered_answers(
    method: ModelWrapper,
    given: Iterable[Batch],
    neighbors: NearestNeighbors | None,
    listener: Callable[[Tensor], None] | None,
) -> Answers:
    """Asks a method's model, in eval mode, and answers what it answered, in order.

    Raises:
        CovarianceError: The weights moved meanwhile.
        ValueError: The model makes something else of its logits than what a variance can be carried through.
    """
    model, device = in_eval_mode(method.model), device_of(method.model)
    outputs, targets, means, variances, distances = (Gathered() for _ in range(5))
    for batch in given:
        batch = batch.to(device)
        with recorded() as calls:
            output = method.output_of(model, batch)
        gaussian, features = posterior_of(model, batch, calls, output, method.outputs)
        outputs.append(output)
        targets.append(as_class_targets(batch.targets))
        if neighbors is not None:
            distances.append(neighbors(features))
        if listener is not None:
            listener(features)
        means.append(gaussian.mean.reshape(output.shape))
        variances.append(gaussian.variance.reshape(output.shape))
    answers, mean, variance = outputs.tensor(), means.tensor(), variances.tensor()
    assert answers is not None
    assert mean is not None
    assert variance is not None
    return Answers(answers, GaussianLogits(mean, variance), targets.tensor(), distances.tensor())

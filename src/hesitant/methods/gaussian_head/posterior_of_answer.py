"""The Gaussian of what a model answered, and the features that it is of: from one forward pass."""

from collections.abc import Sequence

from torch import Tensor, nn

from hesitant.inputs import Batch
from hesitant.methods.gaussian_head.continuation import continuation, only_call
from hesitant.methods.gaussian_head.features import repeating
from hesitant.methods.outputs import Outputs
from hesitant.nn import CovarianceError, GaussianLogits, GaussianProcessCall


def posterior_of(
    model: nn.Module, batch: Batch, calls: Sequence[GaussianProcessCall], output: Tensor, outputs: Outputs
) -> tuple[GaussianLogits, Tensor]:
    """Answers the Gaussian of the logits that a model answered with, and the features ``(B, D)`` that they are of.

    Args:
        model: What was asked, in eval mode.
        batch: What it was asked.
        calls: Of its Gaussian process, as they were recorded meanwhile.
        output: What it answered.
        outputs: What that is.

    Raises:
        CovarianceError: The weights moved meanwhile.
        ValueError: The model makes something else of its logits than what a variance can be carried through.
    """
    call = only_call(calls)
    if call.posterior is None:
        raise CovarianceError("predict: the weights moved while the model answered. Call fit_covariance(data) again.")
    again = repeating(model, batch.args, batch.kwargs)
    found = continuation(call.output, output, again, probabilities=outputs == "probabilities")
    gaussian = GaussianLogits(found.mean(call.posterior.mean), found.variance(call.posterior.variance))
    return gaussian, found.rows(call.inputs)

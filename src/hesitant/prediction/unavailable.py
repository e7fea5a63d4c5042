"""What a prediction may lack, and why: it says so instead of answering with a number that means nothing."""

__all__ = ["UnavailableError", "reason_for"]

_ONE_DISTRIBUTION = (
    "this prediction holds a single distribution for each input, and one distribution cannot be split into an "
    "aleatoric and an epistemic part. Predict with several, as MCDropout and DeepEnsemble do, or SNGP with "
    "posterior='monte_carlo'"
)
_NOT_GIVEN = {
    "logits": "this prediction was made from probabilities. Make it with Prediction.from_logits, or pass logits=...",
    "logit_variance": "only a method with a distribution over logits has it. Predict with SNGP, or pass it by name",
}


class UnavailableError(RuntimeError):
    """Raised by a `Prediction` asked for something that the method which made it cannot give."""


def reason_for(name: str, split_unavailable: str | None) -> str:
    """Why a prediction has no `name`, and what to do; of the split the reason may be given."""
    return _NOT_GIVEN.get(name) or split_unavailable or _ONE_DISTRIBUTION

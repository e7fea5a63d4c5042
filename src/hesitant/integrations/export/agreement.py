"""What was written is asked the example: it takes no file's place unless it answers as ``predict`` does."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesitant.inputs import Batch
from hesitant.integrations.export.example import MASKS, Example
from hesitant.integrations.export.named_answers import NamedAnswers
from hesitant.prediction import Prediction

Answers = Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Tensor]]

_PROBS = {False: 1e-4, True: 2e-2}  # absolute, in half precision or not
_RELATIVE = {False: 1e-2, True: 5e-2}  # of uncertainties and variances
_DEVIATIONS = 8  # of a mean of passes from another: never by chance
_FEW = 20  # passes, whose deviation from one another may be a tenth of what it is in the mean


def require_agreement(answers: Answers, module: NamedAnswers, asked: Example, masks: list[Tensor], method: Any) -> None:
    """Requires that a file answers the example as it should: all of it, one input, sequences of another length.

    Args:
        answers: Asks the file.
        module: What was captured.
        asked: The example.
        masks: What dropout keeps, where that is given: the answer is then the module's, to the same masks.
        method: What it is to answer as.

    Raises:
        ValueError: It does not.
    """
    if masks:
        with torch.no_grad():
            expected = module(*asked.few.args, **asked.few.kwargs, **{MASKS: masks})
        _require_same(answers(asked.few.args, {**asked.few.kwargs, MASKS: masks}), expected, is_half=False)
        return
    for batch in asked.parts():
        part = method.predict([Batch(batch.args, {**batch.kwargs, **asked.fixed})])
        found = _ask(answers, batch)
        if module.num_samples is not None:
            _require_passes(found, _ask(answers, batch), part, module.num_samples)
            continue
        expected = {"probs": part.probs, "uncertainty": part.ood_score}
        if "logit_variance" in part.available:
            expected["logit_variance"] = part.logit_variance
        _require_same(found, expected, is_half=module.is_half)


def _ask(answers: Answers, batch: Batch) -> dict[str, Tensor]:
    return answers(batch.args, batch.kwargs)


def _require_same(found: dict[str, Tensor], expected: dict[str, Tensor], *, is_half: bool) -> None:
    for name, wanted in expected.items():
        got, wanted = found[name].double().cpu(), wanted.double().cpu()
        slack = _PROBS[is_half] if name == "probs" else _PROBS[is_half] + _RELATIVE[is_half] * wanted.abs()
        if got.shape != wanted.shape or not bool(((got - wanted).abs() <= slack).all()):
            apart = f"shape {tuple(got.shape)} for {tuple(wanted.shape)}"
            if got.shape == wanted.shape:
                apart = f"{float((got - wanted).abs().amax()):.3g} apart"
            raise ValueError(
                f"what was written answers the example with other {name} than the method does, {apart}: the model does"
                " something else to its classifier's logits, or asks another way when it is traced, or the runtime has"
                " an error. Nothing was kept. softmax(model(x)) can be exported by torch itself."
            )


def _require_passes(found: dict[str, Tensor], again: dict[str, Tensor], prediction: Prediction, samples: int) -> None:
    if torch.equal(found["probs"], again["probs"]):
        raise ValueError("what was written answers twice alike: its dropout was lost. Nothing was kept.")
    # Of an ensemble's passes the deviation may not be told, and of a few it is not known: it is at most that of a
    # class that is drawn or not.
    probs = prediction.probs.double().cpu()
    known = "class_std" in prediction.available and samples >= _FEW
    deviation = prediction.class_std.double().cpu() if known else (probs * (1 - probs)).sqrt()
    slack = _DEVIATIONS * math.sqrt(2 / samples) * deviation + 1e-2
    apart = (found["probs"].double().cpu() - probs).abs()
    if not bool((apart <= slack).all()):
        raise ValueError(
            f"what was written answers the example with probabilities {float(apart.amax()):.3g} from those of the"
            " method, more than other dropout masks can do. Nothing was kept."
        )

"""Predictions that the tests of several metrics share: random ones, and ones at the ends of what there is."""

import torch

from hesitant.prediction import Prediction


def random_prediction(
    num_inputs: int, num_classes: int, *, scale: float = 2.0, dtype: torch.dtype = torch.float64
) -> Prediction:
    generator = torch.Generator().manual_seed(num_inputs * 7 + num_classes)
    logits = scale * torch.randn(num_inputs, num_classes, generator=generator, dtype=dtype)
    right = torch.rand(num_inputs, generator=generator) < 0.6
    others = torch.randint(num_classes, (num_inputs,), generator=generator)
    return Prediction.from_logits(logits, targets=torch.where(right, logits.argmax(dim=-1), others))


def tied_prediction(num_inputs: int, num_classes: int, *, levels: int = 7) -> Prediction:
    """Of few distinct confidences, some of them on the edges of bins."""
    generator = torch.Generator().manual_seed(num_inputs + levels)
    steps = torch.randint(levels, (num_inputs,), generator=generator).double() / (levels - 1)
    confidence = 1 / num_classes + (1 - 1 / num_classes) * steps
    label = torch.randint(num_classes, (num_inputs,), generator=generator)
    probs = ((1 - confidence) / (num_classes - 1)).unsqueeze(-1).repeat(1, num_classes)
    probs.scatter_(-1, label.unsqueeze(-1), confidence.unsqueeze(-1))
    wrong = torch.rand(num_inputs, generator=generator) > confidence
    return Prediction(probs, targets=(label + wrong) % num_classes)


def one_hot_prediction(num_classes: int, *, right: bool, num_inputs: int = 20) -> Prediction:
    targets = torch.arange(num_inputs) % num_classes
    return Prediction(torch.eye(num_classes)[(targets + (not right)) % num_classes], targets=targets)


def uniform_prediction(num_classes: int, *, repeats: int = 4) -> Prediction:
    targets = torch.arange(repeats * num_classes) % num_classes
    return Prediction(torch.full((len(targets), num_classes), 1 / num_classes), targets=targets)


CASES = {
    "one input": random_prediction(1, 2),
    "two classes": random_prediction(200, 2),
    "three classes": random_prediction(500, 3, dtype=torch.float32),
    "1,000 classes": random_prediction(100, 1000),
    "a class absent": random_prediction(60, 4).with_targets(random_prediction(60, 3).targets),
    "one class alone": random_prediction(60, 3).with_targets(torch.zeros(60, dtype=torch.int64)),
    "confident": random_prediction(300, 3, scale=30.0),
    "saturated": random_prediction(300, 3, scale=300.0, dtype=torch.float32),
    "ties": tied_prediction(400, 3),
    "all right and sure": one_hot_prediction(3, right=True),
    "all wrong and sure": one_hot_prediction(3, right=False),
    "all equal": uniform_prediction(3),
    "0 and 1": Prediction(torch.eye(2)[[0, 0, 1, 1, 1]], targets=[0, 1, 1, 1, 0]),
}

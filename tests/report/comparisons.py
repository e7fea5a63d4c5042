"""Comparisons to report on: of pictures, of rows and of texts, with names that would break a careless page."""

from functools import cache

import torch

from hesitant.evaluation.comparison.compare import Comparison, Cost
from hesitant.prediction import Prediction

NASTY = '<script>alert("x")</script>'
NUM_INPUTS, NUM_OOD, NUM_CLASSES = 1200, 60, 3


def predicted(seed, *, num_inputs=NUM_INPUTS, signal=5.0, targets=None):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_inputs, NUM_CLASSES, generator=generator)
    if targets is not None:
        logits[torch.arange(num_inputs), targets] += signal
    return Prediction.from_logits(logits, targets=targets)


def compared(inputs=None, ood_inputs=None, *, signals=None, ood_name="far & away", num_inputs=NUM_INPUTS):
    signals = {"SNGP": 3.5, "a method & <its> name": 2.5} if signals is None else signals
    targets = torch.arange(num_inputs) % NUM_CLASSES
    return Comparison.from_predictions(
        {
            name: predicted(place, num_inputs=num_inputs, signal=signal, targets=targets)
            for place, (name, signal) in enumerate(signals.items())
        },
        ood={ood_name: {name: predicted(place + 9, num_inputs=NUM_OOD) for place, name in enumerate(signals)}},
        costs={name: Cost(0.1, 12345, 6.7) for name in signals},
        inputs=inputs,
        ood_inputs=None if ood_inputs is None else {ood_name: ood_inputs},
    )


@cache
def of_pictures():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(NUM_INPUTS, 1, 12, 12, generator=generator)
    return compared(pictures, torch.rand(NUM_OOD, 3, 300, 200, generator=generator))


@cache
def of_rows(num_features=12):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(NUM_INPUTS, num_features, generator=generator)
    return compared(rows, torch.randn(NUM_OOD, num_features, generator=generator))


@cache
def of_texts():
    texts = [f"{NASTY} word" * 60 + f"longwordwithoutanyspace{place}" * 12 for place in range(NUM_INPUTS)]
    return compared(texts, texts[:NUM_OOD])

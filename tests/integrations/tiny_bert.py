"""A BERT of a few thousand weights, and sentences whose first word tells their class."""

from typing import Any

import torch
from torch import nn

from hesitant import SNGP

CLASSES = 3


def bert(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 40,
        "max_position_embeddings": 8,
        "num_labels": CLASSES,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(BertConfig(**{**sizes, **options}))


def sngp(model: nn.Module | None = None, **options: Any) -> SNGP:
    generator = torch.Generator().manual_seed(1)
    return SNGP(bert() if model is None else model, **{"num_inducing": 32, "generator": generator, **options})


def sentences(length: int, seed: int, *, known: bool = True) -> list[dict[str, Any]]:
    """Sentences of classes that are known, or of words that none of these begin with."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for row in range(length):
        tokens = torch.randint(20, 40, (6,), generator=generator)
        target = row % CLASSES
        tokens[0] = 10 + target if known else 5
        found.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": target})
    return found


TRAIN, TEST = sentences(48, 0), sentences(18, 1)
UNKNOWN = sentences(12, 2, known=False)

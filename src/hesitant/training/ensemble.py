"""Trains the members of a DeepEnsemble, in one vectorised pass where that can be and pays, else one by one."""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hesitant.inputs import member_loader
from hesitant.methods import DeepEnsemble, derived_seed, forget_calibrations
from hesitant.training.history import EnsembleHistory, History, merged
from hesitant.training.loop import accelerating, seeded, train
from hesitant.training.settings import Settings
from hesitant.training.vectorized import CannotStackError, VectorizedRun, why_one_by_one


def train_ensemble(ensemble: DeepEnsemble, data: Any, settings: Settings) -> EnsembleHistory:
    """Trains each member as a fit of its own would: with its own order of the data and its own dropout.

    Both follow from the seed. Members trained together and one by one are the same but for rounding, and for the masks
    of dropout, which have the same distribution. A calibration is forgotten, the ensemble's own too. Checkpoints are
    those of the members, next to each other, and either way goes on from them.

    Raises:
        ValueError: As for one model; the message names the member.
    """
    forget_calibrations(ensemble)
    history = _train_members(ensemble, data, replace(settings, outputs=ensemble.outputs))
    ensemble.eval()
    return history


def _train_members(ensemble: DeepEnsemble, data: Any, settings: Settings) -> EnsembleHistory:
    members = list(ensemble.members)
    each = [_of_member(settings, index) for index in range(len(members))]
    began = time.perf_counter()
    with ExitStack() as stack:
        accelerator = stack.enter_context(
            accelerating(settings.mixed_precision, settings.gradient_accumulation_steps, settings.device)
        )
        stack.enter_context(seeded(each[0].seed, accelerator.device))
        modes = [(module, module.training) for module in ensemble.modules()]
        try:
            why = why_one_by_one(members, settings, accelerator, ensemble.vectorize)
            if why is None:
                return VectorizedRun(members, each, data, accelerator.device).train()
        except CannotStackError as error:
            why = str(error)
            for module, mode in modes:
                module.training = mode
    histories = []
    for index, (member, own) in enumerate(zip(members, each, strict=True)):
        title = f"member {index + 1} of {len(members)}"
        try:
            histories.append(_train_alone(member, data, own, title))
        except ValueError as error:
            raise ValueError(f"members[{index}]: {error}") from error
    return merged(histories, why, time.perf_counter() - began)


def _of_member(settings: Settings, index: int) -> Settings:
    """Answers the settings of one member by itself."""
    path = None if settings.checkpoint is None else Path(settings.checkpoint)
    checkpoint = None if path is None else path.with_name(f"{path.name}.member{index}")
    return replace(settings, seed=derived_seed(settings.seed % 2**63, index), checkpoint=checkpoint)


def _train_alone(member: nn.Module, data: Any, settings: Settings, title: str) -> History:
    if isinstance(member, DeepEnsemble):
        return train_ensemble(member, data, settings)
    loader = member_loader(data, settings.batch_size, torch.Generator().manual_seed(settings.seed))
    return train(member, data, settings, loader=loader, title=title)

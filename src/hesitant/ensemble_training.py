"""Trains the members of a DeepEnsemble, in one vectorised pass where that can be and pays, else one by one."""

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hesitant.ensemble_history import EnsembleHistory, merged
from hesitant.inputs import member_loader
from hesitant.member_stack import CannotStackError
from hesitant.members_together import MembersTogether, checkpoint_of, first_batch
from hesitant.methods import DeepEnsemble
from hesitant.methods.member_masks import MemberDropout
from hesitant.methods.random_state import derived_seed
from hesitant.methods.tempering import forget_calibrations
from hesitant.stacking_rules import probed, why_one_by_one
from hesitant.training_run import History, accelerating, seeded, train
from hesitant.training_settings import Settings

__all__ = ["EnsembleHistory", "train_ensemble"]


def train_ensemble(ensemble: DeepEnsemble, data: Any, settings: Settings) -> EnsembleHistory:
    """Trains each member as a fit of its own would: with its own order of the data and its own dropout.

    Both follow from the seed and the member's place alone, so that members trained together and one by one are the same
    but for rounding. A calibration is forgotten, the ensemble's own too. Checkpoints are those of the members, next to
    each other, and either way goes on from them.

    Raises:
        ValueError: As for one model; the message names the member.
    """
    forget_calibrations(ensemble)
    history = _train_members(ensemble, data, replace(settings, outputs=ensemble.outputs))
    ensemble.eval()
    return history


def _train_members(ensemble: DeepEnsemble, data: Any, settings: Settings) -> EnsembleHistory:
    members = list(ensemble.members)
    seeds = [derived_seed(settings.seed % 2**63, index) for index in range(len(members))]
    began = time.perf_counter()
    with ExitStack() as stack:
        accelerator = stack.enter_context(
            accelerating(settings.mixed_precision, settings.gradient_accumulation_steps, settings.device)
        )
        stack.enter_context(seeded(seeds[0], accelerator.device))
        modes = [(module, module.training) for module in ensemble.modules()]
        try:
            why = why_one_by_one(members, settings, accelerator, ensemble.vectorize)
            if why is None:
                return MembersTogether(members, seeds, data, settings, accelerator.device).train()
        except CannotStackError as error:
            why = str(error)
            for module, mode in modes:
                module.training = mode
    histories = []
    for index, (member, seed) in enumerate(zip(members, seeds, strict=True)):
        own = replace(settings, seed=seed, checkpoint=checkpoint_of(settings, index))
        title = f"member {index + 1} of {len(members)}"
        try:
            histories.append(_train_alone(member, data, own, title))
        except ValueError as error:
            raise ValueError(f"members[{index}]: {error}") from error
    return merged(histories, why, time.perf_counter() - began)


def _train_alone(member: nn.Module, data: Any, settings: Settings, title: str) -> History:
    if isinstance(member, DeepEnsemble):
        return train_ensemble(member, data, settings)
    loader = partial(member_loader, data, settings.batch_size)
    with accelerating(settings.mixed_precision, settings.gradient_accumulation_steps, settings.device) as accelerator:
        device = accelerator.device
    with seeded(settings.seed, device):
        first = first_batch(loader(torch.Generator().manual_seed(settings.seed)), device)
        drawing, _ = probed(member.to(device), first, settings)
    dropout = MemberDropout(settings.seed, drawing)
    return train(
        member,
        data,
        settings,
        loader=loader(torch.Generator().manual_seed(settings.seed)),
        dropout=dropout,
        title=title,
    )

"""One model's training: the loop, on Accelerate, and what it consists of."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from hesitant.inputs import Batch, as_batch, as_targets, training_loader
from hesitant.methods import SNGP, Deterministic, OutputProbe, Tempered, forget_calibrations, logits_of, require_rows
from hesitant.prediction import Prediction
from hesitant.training.checkpoint import Progress, global_random_states, load_checkpoint, save_checkpoint
from hesitant.training.history import History
from hesitant.training.run_identity import run_identity
from hesitant.training.schedule import Schedule
from hesitant.training.settings import NO_TARGETS, Settings

if TYPE_CHECKING:
    from accelerate import Accelerator



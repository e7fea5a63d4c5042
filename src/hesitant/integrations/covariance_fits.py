"""What the callbacks of training loops share: when asked, the covariance of every SNGP in a model is that of now."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from hesitant.inputs import over, require_num_inputs, several_workers
from hesitant.methods import SNGP, forget_calibrations, random_state_kept, share_weights


class CovarianceFits:
    """Fits covariances in the middle of a training run, of which nothing else is changed.

    Args:
        data: What to fit to; None is the training data of the run.
        batch_size: Inputs in one forward pass, where ``data`` has no batches of its own.
        num_inputs: How many, a uniform sample, stand for all of them until training ends; None is all.
        seed: Of that choice.
    """

    def __init__(self, data: Any, batch_size: int | None, num_inputs: int | None, seed: int) -> None:
        require_num_inputs(num_inputs)
        self.data, self.batch_size, self.num_inputs, self.seed = data, batch_size, num_inputs, seed
        self._paused = False  # whether something was fitted since training went on

    def begin(self, root: nn.Module, loader: Any) -> None:
        """Readies a model for training, as ``hesitant.fit`` does: see there for what it does to a calibration.

        A Gaussian process that is as it was drawn starts from the classifier that it replaced. A run that is resumed
        goes on as an unbroken one.
        """
        forget_calibrations(root)
        self._paused = True
        for method in sngps(root):
            if method.gp.is_as_drawn():
                with undisturbed():
                    started = method.start_from_classifier(self._data(loader), batch_size=self.batch_size)
                if started and several_workers():
                    share_weights(method)

    def go_on(self, root: nn.Module) -> None:
        """Lets training go on after a fit as if there had been none; to be called before each step."""
        if self._paused:
            self._paused = False
            for method in sngps(root):
                method.gp.expect_step()

    def fit(self, root: nn.Module, loader: Any, *, exact: bool = False) -> None:
        """Fits the covariances that are not those of the present weights; all workers of a run call this.

        Args:
            root: The model, or what holds it.
            loader: The run's DataLoader of training data.
            exact: Whether to go through all data where a sample has stood for it.
        """
        num_inputs = None if exact else self.num_inputs
        self._paused = True
        for method in sngps(root):
            running = method.gp.laplace.momentum is not None
            if running or (method.covariance_state == "fitted" and not (exact and self.num_inputs is not None)):
                continue
            with undisturbed():
                method.fit_covariance(
                    self._data(loader), batch_size=self.batch_size, num_inputs=num_inputs, seed=self.seed
                )

    def _data(self, loader: Any) -> Any:
        return all_of(loader) if self.data is None else self.data


def sngps(root: nn.Module) -> list[SNGP]:
    """Answers the SNGPs in a model, whatever is around them.

    Raises:
        ValueError: There is none.
    """
    found = [module for module in root.modules() if isinstance(module, SNGP)]
    if not found:
        raise ValueError(
            f"FitCovariance: {type(root).__name__} holds no SNGP, and no other method has a covariance to fit. Leave"
            " the callback out, or train a hesitant.SNGP."
        )
    return found


def forget_each_epoch(root: nn.Module) -> None:
    """Resets running covariances that forget nothing: without this, each epoch would count the data once more."""
    for method in sngps(root):
        if method.gp.laplace.momentum == 1:
            method.gp.reset_covariance()


def keep_out_of_broadcasts(root: nn.Module) -> None:
    """Has DistributedDataParallel around ``root`` leave alone what an SNGP within asks it to."""
    ignored = set(getattr(root, "_ddp_params_and_buffers_to_ignore", []))
    for prefix, module in root.named_modules():
        if isinstance(module, SNGP):
            ignored |= {f"{prefix}.{name}" if prefix else name for name in module._ddp_params_and_buffers_to_ignore}
    root._ddp_params_and_buffers_to_ignore = sorted(ignored)  # type: ignore[assignment]


def all_of(loader: Any) -> "DataLoader[Any]":
    """Answers a loader of the same Dataset, each input once and in order, whatever training's sampler does.

    Raises:
        TypeError: There is no Dataset with a length.
    """
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or isinstance(dataset, IterableDataset):
        kind = type(loader if dataset is None else dataset).__name__
        raise TypeError(
            f"FitCovariance: the training data of this run is a {kind}, which does not say which inputs it has. Say"
            " what to fit to: FitCovariance(data=...), anything that fit_covariance takes."
        )
    return over(dataset, loader)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Lets data and models draw within, and puts global generators back; what is made can be trained on."""
    devices = [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_initialized() else []
    with random_state_kept(devices), torch.inference_mode(False), torch.no_grad():
        yield

"""What every method has of being saved: ``save_pretrained``, and what a folder told of the data."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hesitant.methods.saving.architectures import Head
from hesitant.methods.saving.describing import Architecture
from hesitant.methods.saving.failure import SavedModelError
from hesitant.methods.saving.hub import fetched, sent
from hesitant.methods.saving.writing import SavedDetector, write

__all__ = ["SavedMethod"]

OwnMethod = TypeVar("OwnMethod", bound="SavedMethod")


class SavedMethod(nn.Module):
    """A method that can be saved in a folder."""

    #: What is done to raw inputs before the model gets them, as the folder says it that the model was loaded from.
    preprocessing: Any = None
    #: The names of the classes, in their order.
    label_names: list[str] | None = None

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        policy: Any = None,
        preprocessing: Any = None,
        label_names: Sequence[str] | None = None,
        architecture: Architecture | Sequence[Architecture] | None = None,
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Saves the method in a folder: ``config.json``, and tensors as safetensors. :func:`hesitant.load` loads it.

        All of it or nothing: whatever ends the process, a folder that was there is the old model or the new one, whole.
        Networks of timm, torchvision and transformers, and layers of torch in a ``Sequential``, are told by themselves;
        the weights of any other are saved, too, and a warning says that the network has to be given at loading.

        Args:
            folder: It is made if need be; a model that it holds is replaced.
            policy: A :class:`~hesitant.DeferralPolicy` of this model, kept with it.
            preprocessing: What is done to raw inputs before the model gets them: a tokenizer or an image processor of
                transformers, or anything that JSON can hold, such as timm's data config. None keeps what it was loaded
                with.
            label_names: The names of the classes, in their order. None keeps those that it was loaded with.
            architecture: How the network is built, where that cannot be told: ``{"kind": "class", "name":
                "package.module.Net", "arguments": {...}}``, of JSON alone, or a kind of ``"timm"``, ``"torchvision"``
                or ``"transformers"`` with a name and arguments; ``{"kind": "given"}`` says that it will be given. Of
                several networks one for all, or a list.
            max_shard_size: Bytes of tensors in one file, a number or a text such as ``"5GB"``.

        Raises:
            ValueError: The weights hold NaN, the folder holds the model of another library, or an argument does not
                fit the model.
            TypeError: The method, or its state dict, holds what cannot be saved without pickle.
            OSError: The folder cannot be written.
            ImportError: safetensors is not installed.
        """
        self.save_with_detector(
            folder,
            None,
            policy=policy,
            preprocessing=preprocessing,
            label_names=label_names,
            architecture=architecture,
            max_shard_size=max_shard_size,
        )

    def save_with_detector(
        self,
        folder: str | Path,
        detector: SavedDetector | None,
        *,
        policy: Any = None,
        preprocessing: Any = None,
        label_names: Sequence[str] | None = None,
        architecture: Architecture | Sequence[Architecture] | None = None,
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Saves the method, and what a detector around it says of itself; the rest is as :meth:`save_pretrained`."""
        write(
            self,
            Path(folder),
            detector=detector,
            policy=policy,
            preprocessing=self.preprocessing if preprocessing is None else preprocessing,
            label_names=self.label_names if label_names is None else label_names,
            architecture=architecture,
            max_shard_size=max_shard_size,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        commit_message: str = "A model of hesitant",
        create_pr: bool = False,
        **saving: Any,
    ) -> str:
        """Saves the method in a repository of a Hugging Face hub, as one commit, and answers the commit's address.

        Args:
            repo_id: ``"owner/name"``; it is made if need be.
            private: Whether a repository that is made is private; None is the owner's default.
            token: Of the hub; None takes the one that is logged in.
            revision: The branch to commit to.
            commit_message: What the commit says.
            create_pr: Whether to propose the commit instead.
            saving: Arguments of :meth:`save_pretrained`.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: As :meth:`save_pretrained`.
        """
        return sent(
            lambda folder: self.save_pretrained(folder, **saving),
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )

    @classmethod
    def from_pretrained(
        cls: type[OwnMethod],
        folder: str | Path,
        *,
        model: nn.Module | Sequence[nn.Module] | None = None,
        trust: str | Collection[str] = (),
        device: torch.device | str | None = None,
        **fetching: Any,
    ) -> OwnMethod:
        """Answers a method of this class that was saved in a folder, or in a repository of a Hugging Face hub.

        Args:
            folder: A folder, or the ``"owner/name"`` of a repository.
            model: As for :func:`hesitant.load`, like ``trust`` and ``device``.
            trust: Likewise.
            device: Likewise.
            fetching: Arguments of huggingface_hub's ``snapshot_download``, such as ``revision``, ``token``,
                ``cache_dir`` and ``local_files_only``.

        Raises:
            SavedModelError: As :func:`hesitant.load`, or the method is of another class.
            ImportError: huggingface_hub is not installed, and the model is on a hub.
        """
        from hesitant.methods import load_within

        root = None
        if not Path(folder).is_dir():
            folder, root = fetched(str(folder), **fetching)
        loaded: Any = load_within(folder, root, model=model, trust=trust, device=device)
        if not isinstance(loaded, cls):
            raise SavedModelError(
                f"{folder} holds a {type(loaded).__name__}, not a {cls.__name__}: load it by"
                f" hesitant.{type(loaded).__name__}.from_pretrained, or a folder by hesitant.load."
            )
        return loaded

    def saved_options(self) -> dict[str, Any]:
        """Answers the options of the constructor, as JSON, with which the method is made again."""
        raise NotImplementedError

    def saved_head(self) -> Head | None:
        """Answers the classifier in whose place something else stands, if there is one."""
        return None

    def saved_extras(self) -> dict[str, Tensor]:
        """Answers tensors that are in no state dict and that the method goes on with."""
        return {}

    def take_saved_extras(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`saved_extras` answered."""

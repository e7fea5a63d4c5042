"""What every method has of being saved: ``save_pretrained``, and what a folder told of the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hesitant.methods.saving.architectures import Head
from hesitant.methods.saving.describing import Architecture
from hesitant.methods.saving.writing import write

__all__ = ["SavedMethod"]


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
        write(
            self,
            Path(folder),
            policy=policy,
            preprocessing=self.preprocessing if preprocessing is None else preprocessing,
            label_names=self.label_names if label_names is None else label_names,
            architecture=architecture,
            max_shard_size=max_shard_size,
        )

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

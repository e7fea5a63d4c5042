"""Where a network's code comes from, as JSON: told at saving, built at loading, with nothing of a folder executed.

``tell`` answers the architecture of a network: a name of timm or torchvision with arguments, a class of transformers
with its config, layers of torch.nn one after another; ``build`` builds it. An own class is imported by its path,
which is trusted by name or not at all. Each kind has a file of its own. ``methods`` call it to save and to load.
"""

from hesitant.methods.saving.architectures.building import Limits, build, require_architecture
from hesitant.methods.saving.architectures.telling import Head, tell

__all__ = ["Head", "Limits", "build", "require_architecture", "tell"]

"""What is raised of a folder that cannot be loaded, and what is said of a model that cannot be told."""

__all__ = ["ArchitectureWarning", "SavedModelError"]


class SavedModelError(ValueError):
    """A folder holds no model that can be loaded: it is foreign, damaged, changed, of another version, or incomplete.

    The message names the file, what is wrong with it, and what to do. Nothing of the folder has been executed.
    """


class ArchitectureWarning(UserWarning):
    """A network was saved that its folder does not tell how to build, or is loaded into code that looks changed."""

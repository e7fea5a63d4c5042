"""Which predictions can be one: those made in the same way."""

from collections.abc import Sequence

__all__ = ["require_alike"]


def require_alike(kinds: Sequence[str], fields: Sequence[Sequence[str]]) -> None:
    """Checks that predictions can be concatenated.

    Args:
        kinds: of each, its classes and device, in words.
        fields: of each, the names of the tensors that it has.

    Raises:
        ValueError: they differ in classes or device, or some have a field that others lack.
    """
    for position, (kind, names) in enumerate(zip(kinds, fields, strict=True)):
        if kind != kinds[0]:
            raise ValueError(
                f"predictions[{position}] has {kind}, predictions[0] has {kinds[0]}: concatenate predictions of the "
                "same classes, on one device"
            )
        differing = [name for name in (*names, *fields[0]) if (name in names) != (name in fields[0])]
        if differing:
            name = differing[0]
            having, lacking = (position, 0) if name in names else (0, position)
            raise ValueError(
                f"predictions[{having}] has {name.lstrip('_')}, predictions[{lacking}] does not: concatenate "
                "predictions made in the same way"
            )

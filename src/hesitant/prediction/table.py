"""A prediction's fields as a table, a row an input."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas

__all__ = ["as_frame"]


def as_frame(fields: "Mapping[str, np.ndarray[Any, Any]]") -> "pandas.DataFrame":
    """The `pandas.DataFrame` of fields by name, without the logarithms; those with classes have a column a class.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas, or use .numpy()") from error
    rename = {"labels": "label", "targets": "target"}
    shown = {name: values for name, values in fields.items() if name != "log_probs"}
    columns = {rename.get(name, name): values for name, values in shown.items() if values.ndim == 1}
    for name, values in shown.items():
        if values.ndim == 2:
            columns |= {f"{name}_{c}": values[:, c] for c in range(values.shape[1])}
    return pandas.DataFrame(columns)

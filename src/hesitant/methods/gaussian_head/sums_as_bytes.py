"""Sums over data as bytes, read as if anyone had made them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hesitant.files import ArrayHeader, npz_bytes, parse_json, read_npz
from hesitant.methods.gaussian_head.summed_weights import SummedWeights
from hesitant.nn import UniformSample

_VERSION = 1
_NUMBERS = {"about": "u", "total": "f", "rows": "f", "keys": "f"}
_MOST_ABOUT = 10_000  # bytes


@dataclass(frozen=True)
class SumsContent:
    """What sums consist of.

    Attributes:
        weights: What they belong to.
        total: ``sum_i w_i phi_i phi_i^T``, float64; of a square one, what lies below the diagonal is left out.
        count: How many inputs are in it.
        sample: Of the training features, where any are kept.
    """

    weights: SummedWeights
    total: Tensor
    count: int
    sample: UniformSample | None


def written_sums(content: SumsContent) -> bytes:
    """Answers sums as bytes."""
    options, fingerprint = content.weights.identity()
    sample = content.sample
    about = {
        "hesitant.CovarianceSums": _VERSION,
        "options": options,
        "weights": fingerprint,
        "count": content.count,
        "shape": list(content.total.shape),
        "sample": None if sample is None else {"limit": sample.limit, "bound": min(sample.bound, 2.0)},
    }
    arrays: dict[str, NDArray[Any]] = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "total": _packed(content.total, _is_square(options)),
    }
    if sample is not None and len(sample):
        rows, keys = sample.kept()
        arrays |= {"rows": rows.cpu().numpy(), "keys": keys.numpy()}
    return npz_bytes(arrays)


def read_sums(content: bytes) -> SumsContent:
    """Answers the sums that bytes hold.

    Raises:
        ValueError: They hold none, or are damaged, or from a later version.
    """
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise TypeError(f"content is a {type(content).__name__}: expected the bytes that to_bytes() answered.")
    try:
        arrays = read_npz("the bytes of a CovarianceSums", _check, content=bytes(content))
        return _understood(arrays, parse_json(arrays["about"].tobytes().decode()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"content is no CovarianceSums, or damaged: {error}.") from error


def _check(headers: Mapping[str, ArrayHeader]) -> None:
    if not {"about", "total"} <= set(headers) <= set(_NUMBERS):
        raise ValueError(f"it holds {sorted(headers)}")
    for name, header in headers.items():
        if header.dtype.kind != _NUMBERS[name]:
            raise ValueError(f"{name} is of {header.dtype}")
    if headers["about"].shape[0] > _MOST_ABOUT:
        raise ValueError("about is too long")


def _understood(arrays: Mapping[str, NDArray[Any]], about: dict[str, Any]) -> SumsContent:
    version = about["hesitant.CovarianceSums"]
    if version != _VERSION:
        raise ValueError(f"version {version!r}, and this hesitant reads {_VERSION}")
    shape, count, told = tuple(about["shape"]), about["count"], about["sample"]
    if not all(type(axis) is int and axis > 0 for axis in shape) or type(count) is not int or count < 0:
        raise ValueError(f"shape {shape}, count {count!r}")
    weights = about["weights"]
    if not (weights is None or type(weights) is int) or not isinstance(about["options"], dict):
        raise ValueError("weights and options")
    total = _unpacked(torch.from_numpy(arrays["total"]), shape, _is_square(about["options"]))
    sample = None
    if told is not None:
        sample = UniformSample(int(told["limit"]))
        if "rows" in arrays:
            rows, keys = torch.from_numpy(arrays["rows"]), torch.from_numpy(arrays["keys"])
            if rows.ndim != 2 or keys.shape != rows.shape[:1] or len(rows) > sample.limit:
                raise ValueError(f"rows {tuple(rows.shape)}, keys {tuple(keys.shape)}")
            sample.merge(rows, keys)
        if told["bound"] < 1:
            sample.bound = float(told["bound"])
    if not bool(torch.isfinite(total).all()):
        raise ValueError("it holds NaN or Inf")
    return SumsContent(SummedWeights(about["options"], weights), total, count, sample)


def _is_square(options: Mapping[str, Any]) -> bool:
    return options["covariance_rank"] is None


def _packed(total: Tensor, square: bool) -> NDArray[Any]:
    """Answers a sum as numbers: of square matrices, those on and above the diagonal."""
    numbers = total.cpu().numpy()
    return numbers[..., _upper(total.shape[-1])] if square else numbers


def _unpacked(numbers: Tensor, shape: tuple[int, ...], square: bool) -> Tensor:
    """Answers the sum of a shape from its numbers."""
    packed = (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2) if square else shape
    if numbers.shape != packed or numbers.dtype != torch.float64:
        raise ValueError(f"total of {tuple(numbers.shape)}, for a shape of {shape}")
    if not square:
        return numbers.clone()
    total = np.zeros(shape)
    total[..., _upper(shape[-1])] = numbers.numpy()
    return torch.from_numpy(total)


def _upper(size: int) -> NDArray[np.bool_]:
    return np.triu(np.ones((size, size), dtype=bool))

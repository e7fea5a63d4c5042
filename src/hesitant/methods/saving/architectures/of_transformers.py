"""Classifiers of transformers, by the name of their class and their config: no other class is built."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["build_transformers", "transformers_candidates"]

# Others are fetched from a hub, and run.
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# What names code or weights elsewhere, at any depth of a config.
_REFUSED = (
    "auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "use_pretrained_backbone", "backbone",
    "use_timm_backbone", "backbone_kwargs", "model_args",
)  # fmt: skip


def transformers_candidates(network: Any) -> Iterator[dict[str, Any]]:
    """Gives what the network is made by."""
    arguments = {
        name: value
        for name, value in network.config.to_dict().items()
        if name not in ("transformers_version", "_name_or_path", "architectures")
    }
    yield {
        "kind": "transformers",
        "name": type(network).__name__,
        "arguments": arguments,
        "attention": network.config._attn_implementation,
    }


def build_transformers(name: str, arguments: Mapping[str, Any], attention: Any) -> nn.Module:
    """Builds a network without weights.

    Raises:
        ValueError: transformers has no such classifier, or its config is another's, or names code or weights elsewhere.
    """
    import transformers

    kind = getattr(transformers, name, None) if name.isidentifier() and not name.startswith("_") else None
    if not (
        isinstance(kind, type)
        and issubclass(kind, transformers.PreTrainedModel)
        and kind.__module__.startswith("transformers.models.")
        and "Classification" in name
        and "timm" not in kind.__module__
    ):
        raise ValueError(f"transformers {transformers.__version__} has no classifier {name[:80]!r}")
    if attention not in (None, *_ATTENTION):
        raise ValueError(f"attention is {str(attention)[:80]!r}, expected one of {', '.join(_ATTENTION)}")
    _require_harmless(arguments)
    config_class: Any = kind.config_class
    if arguments.get("model_type") != config_class.model_type:
        raise ValueError(
            f"its config is of {str(arguments.get('model_type'))[:40]!r}, expected {config_class.model_type!r}"
        )
    config = config_class.from_dict(dict(arguments))
    if attention is not None:
        config._attn_implementation = attention
    network: nn.Module = kind(config)
    return network


def _require_harmless(part: Any) -> None:
    if isinstance(part, Mapping):
        for name, value in part.items():
            refused = (
                name in _REFUSED
                or ("kernel" in name and isinstance(value, str))
                or name.endswith("attn_implementation")
            )
            if refused and value not in (None, False):
                raise ValueError(f"its config has {name[:80]!r}, which names code or weights from elsewhere")
            _require_harmless(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            _require_harmless(value)

"""Which layers of a model can be bounded in spectral norm, and which of its weights are not."""

from typing import cast

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hesitant.nn.gaussian_process import RandomFeatureGaussianProcess
from hesitant.nn.layer_selection import LayerSelection, by_name, selected


def find_layers(
    model: nn.Module, only: LayerSelection | None = None, exclude: LayerSelection = ()
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Answers the layers whose weight can be bounded, by name, and the weights that are not, each with the reason.

    Bounded are Linear layers, convolutions, and the ``Conv1D`` of transformers' GPT-2, a Linear whose weight is
    ``(in, out)``: the norm is that of the transpose. Of the rest every parameter of two or more axes is listed:
    recurrent weights, packed attention weights, raw parameters; among these are tables that are added or multiplied
    number by number (positions, layer scales), for a shape does not tell them from a matrix. Not listed are
    embeddings, which stretch no distance between features: their inputs are indices; nor a Gaussian process, which is
    what the features are for.

    Raises:
        ValueError: A part of ``only`` or ``exclude`` means none of them.
    """
    modules = dict(model.named_modules())
    matrices = [name for name, module in modules.items() if _has_a_matrix(module)]
    excluded = selected("exclude", exclude, modules, matrices)
    chosen = set(modules) if only is None else selected("only", only, modules, matrices)
    layers: dict[str, nn.Module] = {}
    unbounded: dict[str, str] = {}
    known: set[int] = set()  # weights that are bounded, or that a name stands for
    for name in matrices:
        module = modules[name]
        if name in excluded:
            unbounded[name] = "excluded"
        elif name not in chosen:
            unbounded[name] = "not in only"
        elif isinstance(module, _ConvTransposeNd):
            unbounded[name] = "transposed convolution"
        elif parametrize.is_parametrized(module, "weight") or not isinstance(module.weight, nn.Parameter):
            unbounded[name] = "parametrized weight"
        elif id(module.weight) not in known:
            layers[name] = module
        known |= {id(parameter) for parameter in module.parameters()}
    for name, module in modules.items():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag, RandomFeatureGaussianProcess)):
            continue
        for own, parameter in module.named_parameters(name, recurse=False):
            if id(parameter) not in known and not is_lazy(parameter) and parameter.ndim >= 2:
                known.add(id(parameter))
                unbounded[own] = "excluded" if name in excluded else _reason(module)
    return layers, unbounded


def selection_by_name(model: nn.Module, selection: LayerSelection) -> list[str]:
    """Answers a selection of layers of a model without predicates, which no file can hold."""
    modules = dict(model.named_modules())
    return by_name(selection, modules, [name for name, module in modules.items() if _has_a_matrix(module)])


def is_transposed_linear(module: nn.Module) -> bool:
    """Answers whether this is transformers' ``Conv1D``, told by its looks: transformers need not be there."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and cast(nn.Parameter, module.weight).ndim == 2


def _has_a_matrix(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, _ConvNd)) or is_transposed_linear(module)


def _reason(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return "packed attention weight"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "recurrent weight"
    return f"a parameter of {type(module).__name__}"

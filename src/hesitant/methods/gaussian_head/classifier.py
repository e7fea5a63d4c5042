"""Finds the classifier of a model: the Linear that makes the logits that are read from its answer."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hesitant.methods.gaussian_head.logit_makers import makers_in_a_run, makers_in_a_trace
from hesitant.methods.models_of_keras import require_module
from hesitant.nn import RandomFeatureGaussianProcess

# What the libraries call a classifier, and nobody else anything but one.
_NAMES_OF_CLASSIFIERS = ("classifier", "cls_classifier", "score")
# What they call one as well, or the module that ends in it, as others call a layer before it.
_USUAL_NAMES = (*_NAMES_OF_CLASSIFIERS, "classification_head", "heads", "head", "fc", "out_proj")


def find_classifier(model: nn.Module, name: str | None = None, example_input: Any = None) -> str:
    """Answers the name of the Linear that makes the logits.

    The logits are what is read from the model's answer: the answer itself, its ``logits``, or the first of a tuple. In
    this order:

    1. the name given;
    2. with an ``example_input``, the Linear whose output reaches the logits that the model answers it with;
    3. what the model itself names: ``get_classifier()``, the contract of timm, of several the first;
    4. the only Linear;
    5. the one that a symbolic trace of the model's eval mode leads back to from its answer;
    6. a child of the model under one of the usual names (``classifier``, ``cls_classifier``, ``score``,
       ``classification_head``, ``heads``, ``head``, ``fc``, ``out_proj``), or the Linear in which that child ends, if
       it has as many outputs as the model has ``num_labels`` or ``num_classes``; or if it is the only one of these
       names, and called as only classifiers are (the first three), or the last Linear of all;
    7. the only one with as many outputs as the model has ``num_labels`` or ``num_classes``.

    Where several have a part in the logits (an average of two heads), one with a usual name, else the first that runs.
    Of the copies that PEFT makes of a layer, the active one.

    Raises:
        TypeError: The model is none.
        ValueError: The name is no Linear of the model, the classifier cannot be told from the model alone, an adapter
            is around it, or the model has a Gaussian process already.
    """
    require_module("model", model)
    for path, module in model.named_modules():
        if isinstance(module, RandomFeatureGaussianProcess):
            raise ValueError(f"model has a Gaussian process already, at {path!r}: wrap the plain model.")
    idle = _idle_copies(model)
    linears = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not isinstance(module, NonDynamicallyQuantizableLinear)
        and id(module) not in idle
    }
    if name is not None:
        if name not in linears:
            raise ValueError(f"classifier={name!r} is not a Linear of the model: it has {list(linears)}.")
        return _without_adapter(model, name)
    if not linears:
        raise ValueError(
            f"model={type(model).__name__} has no Linear that could be its classifier: flatten the features and end the"
            " model in nn.Linear(features, classes)."
        )
    if example_input is not None:
        return _without_adapter(model, _one_of(makers_in_a_run(model, linears, example_input), linears, None))
    found = _from_its_code(model, linears)
    if found is None:
        raise ValueError(
            f"the classifier of {type(model).__name__} cannot be told from its code: give its name, classifier=..., one"
            f" of {list(linears)}, or an example_input to run the model on."
        )
    return _without_adapter(model, found)


def _from_its_code(model: nn.Module, linears: dict[str, nn.Linear]) -> str | None:
    paths = {id(module): path for path, module in linears.items()}
    named = getattr(model, "get_classifier", None)
    if callable(named):
        heads = named()
        for head in heads if isinstance(heads, (tuple, list, nn.ModuleList)) else (heads,):
            path = paths.get(id(_ending(head)))
            if path is not None:
                return path
    if len(linears) == 1:
        return next(iter(linears))
    top = _unwrapped(model)
    num_classes = _num_classes(top)
    traced = {_one_of(makers, linears, num_classes) for makers in makers_in_a_trace(model, linears) if makers}
    if traced:
        return traced.pop() if len(traced) == 1 else None  # else which one it is depends on the data
    usual = _usually_named(top, linears, paths, num_classes)
    if usual is not None:
        return usual
    fitting = [path for path, module in linears.items() if module.out_features == num_classes]
    return fitting[0] if len(fitting) == 1 else None


def _one_of(makers: list[str], linears: dict[str, nn.Linear], num_classes: int | None) -> str:
    """Answers one of the Linears that have a part in the logits, the likeliest first."""
    fitting = [path for path in makers if linears[path].out_features == num_classes] or makers
    usual = [path for path in fitting if path.rpartition(".")[2] in _USUAL_NAMES]
    return (usual or fitting)[0]


def _usually_named(
    top: nn.Module, linears: dict[str, nn.Linear], paths: dict[int, str], num_classes: int | None
) -> str | None:
    children = dict(top.named_children())
    found: dict[str, str] = {}
    for name in _USUAL_NAMES:
        path = paths.get(id(_ending(children.get(name))))
        if path is not None:
            found[path] = name
    for path in found:
        if linears[path].out_features == num_classes:
            return path
    if len(found) != 1:
        return None
    ((path, name),) = found.items()
    return path if name in _NAMES_OF_CLASSIFIERS or path == list(linears)[-1] else None


def _ending(module: Any) -> nn.Linear | None:
    """Answers the Linear that a classifier is or ends in."""
    if isinstance(module, nn.Linear):
        return module
    if not isinstance(module, nn.Module):
        return None
    if _is_copied(module):
        return next((_ending(copy) for copy in _active_copies(module)), None)
    if hasattr(module, "base_layer"):
        return _ending(module.base_layer)
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        return next((_ending(child) for child in reversed(module) if any(True for _ in child.parameters())), None)
    return next((end for name in _USUAL_NAMES if (end := _ending(children.get(name))) is not None), None)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Answers the model that PEFT, a compiler or data parallelism is around."""
    while True:
        base: Any = getattr(model, "get_base_model", None)  # PEFT's
        if callable(base):
            inner = base()
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            inner = model._modules.get("_orig_mod")
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def _num_classes(model: nn.Module) -> int | None:
    for name in ("num_labels", "num_classes"):
        for owner in (model, getattr(model, "config", None)):
            number = getattr(owner, name, None)
            if isinstance(number, int) and number > 0:
                return number
    return None


# ---------------------------------------------------------------- PEFT, which need not be installed


def _is_copied(module: nn.Module) -> bool:
    """Whether the module is PEFT's around a layer of which it trains a copy for each adapter (``modules_to_save``)."""
    return isinstance(getattr(module, "modules_to_save", None), nn.ModuleDict) and hasattr(module, "original_module")


def _active_copies(module: nn.Module) -> list[nn.Module]:
    """Answers which of the copies run: that of the active adapter, or the original."""
    copies, active = module.modules_to_save, getattr(module, "active_adapter", [])
    assert isinstance(copies, nn.ModuleDict)
    running = [copies[name] for name in ([active] if isinstance(active, str) else active) if name in copies]
    if not running or getattr(module, "disable_adapters", False):
        return [module.original_module]  # type: ignore[list-item]
    return running


def gaussian_process_in(model: nn.Module, name: str) -> tuple[str, RandomFeatureGaussianProcess]:
    """Answers the path of the Gaussian process that took a classifier's place, and itself.

    Args:
        model: Where it is, wherever adapters have put it since; or it itself.
        name: Of the classifier.

    Raises:
        RuntimeError: It is there no longer.
    """
    try:
        gp = model.get_submodule(name)
    except AttributeError:
        gp = model
    if isinstance(gp, RandomFeatureGaussianProcess):
        return name, gp
    idle = _idle_copies(model)
    for path, module in model.named_modules():
        if isinstance(module, RandomFeatureGaussianProcess) and id(module) not in idle:
            return path, module
    raise RuntimeError(
        f"{type(model).__name__} has no Gaussian process any more: something has taken the classifier out."
    )


def laplace_prefix(model: nn.Module, name: str) -> str:
    """Answers the prefix, within the model, of the buffers of its Gaussian process's covariance."""
    path = gaussian_process_in(model, name)[0]
    return f"{path}.laplace." if path else "laplace."


def _idle_copies(model: nn.Module) -> set[int]:
    """Answers the ids of the modules that stand in the model and never run, as another copy does."""
    idle: set[int] = set()
    for module in model.modules():
        if _is_copied(module):
            running = _ids(_active_copies(module))
            idle |= _ids([module]) - running
    return idle


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(inner) for module in modules for inner in module.modules()}


def _without_adapter(model: nn.Module, path: str) -> str:
    """Answers the path of a classifier.

    Raises:
        ValueError: What an adapter adds to its output would be missing, or stay when the adapter is merged.
    """
    around = model.get_submodule(path.rpartition(".")[0]) if path else model
    if getattr(around, "base_layer", None) is model.get_submodule(path):
        raise ValueError(
            f"the classifier, {path!r}, has an adapter around it ({type(around).__name__}), whose weights a Gaussian"
            " process does not have: leave it out of target_modules and name it in modules_to_save, or merge the"
            " adapter first, model.merge_and_unload()."
        )
    return path

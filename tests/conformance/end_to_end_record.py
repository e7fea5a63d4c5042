"""e2e_sngp_*: what a file says of its network and its training, whatever runs it."""

import re
from dataclasses import dataclass

from .case import Case, CaseError

_NUMBER = r"(-?[0-9.]+(?:e-?[0-9]+)?)"
_MODEL = re.compile(
    rf"h=Dense(\d+)\(x\) frozen; (\d+)x h\+=(\w+)\(SN\(Dense(\d+)\)\)\(h\) mult {_NUMBER};"
    rf" GP\((\d+), M=(\d+), momentum={_NUMBER}, other defaults\); no dropout"
)
_SGD = re.compile(rf"SGD lr {_NUMBER}")
_ADAM = re.compile(rf"tf_keras Adam lr {_NUMBER}, beta1 {_NUMBER}, beta2 {_NUMBER}, epsilon {_NUMBER}")
_LOSS = re.compile(rf"sparse softmax cross-entropy mean over batch(?: \+ {_NUMBER}\*sum\(beta\^2\))?")
_ORDER = re.compile(r"sequential, no shuffle, batches ([0-9,]+)")
_RESET = re.compile(r"precision reset before epochs? ([0-9, and]+)")


def recognises(case: Case) -> bool:
    """Answers whether this is a training from its first step to its last prediction."""
    return case.has("init_gp_beta", "losses", "x", "y", "x_test")


@dataclass(frozen=True)
class Recorded:
    """The network and the training that a file tells of."""

    blocks: int
    width: int
    activation: str
    bound: float
    units: int
    num_inducing: int
    momentum: float
    l2_penalty: float
    optimizer: str  # "SGD" or "Adam"
    optimizer_settings: tuple[float, ...]
    tolerance: float
    resets: tuple[int, ...]  # epochs, from 1, before which the precision is reset
    sizes: tuple[int, ...]  # of the batches


def recorded(case: Case) -> Recorded:
    """Answers what was recorded, checked against the arrays."""
    if case.meta("mode") not in ("eager", "graph (train_on_batch)"):
        raise CaseError(f"{case.path}: mode={case.meta('mode')!r} is not known.")
    width, blocks, act, hidden, bound, units, num_inducing, momentum = _match(case, "model", _MODEL).groups()
    layers = ["input", *(f"dense{i}" for i in case.indices_of("init_dense", "_kernel"))]
    features = {case.array(f"init_{name}_kernel").shape[1] for name in layers}
    if len(layers) != int(blocks) + 1 or features != {int(width), int(hidden)}:
        raise CaseError(f"{case.path}: {case.meta('model')!r} has not the layers that the arrays are of.")
    optimizer, settings, tolerance = _optimizer(case)
    number, size = len(case.array("x")), case.meta("batch_size")
    sizes = tuple(min(size, number - begin) for begin in range(0, number, size))
    order = tuple(int(batch) for batch in _match(case, "order", _ORDER)[1].split(","))
    if order != sizes or len(case.array("y")) != number:
        raise CaseError(f"{case.path}: order={case.meta('order')!r} does not fit {number} inputs and their targets.")
    return Recorded(
        blocks=int(blocks),
        width=int(hidden),
        activation=act,
        bound=float(bound),
        units=int(units),
        num_inducing=int(num_inducing),
        momentum=float(momentum),
        l2_penalty=float(_match(case, "loss", _LOSS)[1] or 0),
        optimizer=optimizer,
        optimizer_settings=settings,
        tolerance=tolerance,
        resets=tuple(int(epoch) for epoch in re.findall(r"\d+", _match(case, "reset", _RESET)[1])),
        sizes=sizes,
    )


def _optimizer(case: Case) -> tuple[str, tuple[float, ...], float]:
    name = str(case.meta("optimizer"))
    if sgd := _SGD.fullmatch(name):
        return "SGD", (float(sgd[1]),), case.tolerances.sgd_training
    if adam := _ADAM.fullmatch(name):
        return "Adam", tuple(float(number) for number in adam.groups()), case.tolerances.adam_training
    raise CaseError(f"{case.path}: optimizer={name!r} is not known: expected SGD or tf_keras Adam.")


def _match(case: Case, key: str, pattern: re.Pattern[str]) -> re.Match[str]:
    match = pattern.fullmatch(str(case.meta(key)))
    if match is None:
        raise CaseError(f"{case.path}: {key}={case.meta(key)!r} is not known: expected {pattern.pattern!r}.")
    return match

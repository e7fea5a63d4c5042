"""Tells what a model's code reads ``module.training`` for: to drop, to drop whole layers, or for something else.

Whoever trains with dropout writes more than dropout behind that flag: noise on labels or inputs, masking of spans,
auxiliary outputs, checkpointing. The code says which: each read is looked up in the source by its place.
"""

import ast
import dis
import enum
import linecache
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

_WHOLE_LAYERS = re.compile(r"drop_?path|layer_?drop|drop_?layer|stochastic_?depth|skip_?the_?layer", re.IGNORECASE)
_DROPPING = re.compile(r"drop(?!_?(last|na|keys?|columns?))|attention|attn|(^|_)(lstm|gru|rnn)($|_)", re.IGNORECASE)
_DROPOUT = re.compile(r"dropout|drop_?(block|connect|out)|^drop$|(^|_)drop($|\d)", re.IGNORECASE)
_OTHER_NOISE = re.compile(r"randn|normal|uniform_|gumbel|noise|mixup|shuffle|perm|exponential", re.IGNORECASE)
# What a dropout that is written by hand is made of, beside the draw.
_PLAIN_CALL = re.compile(
    "abs|bool|clone|contiguous|dim|div|div_|empty|empty_like|expand|expand_as|eye|flatten|float|floor|floor_|"
    "full|full_like|ge|gt|int|le|len|linear|lt|max|mean|min|mul|mul_|multiply|new_empty|new_full|new_ones|"
    "new_tensor|new_zeros|ones|ones_like|reshape|size|squeeze|sub|tensor|to|type|type_as|unsqueeze|view|"
    "view_as|zeros|zeros_like|matmul|isinstance|is_floating_point|half|bfloat16|double"
)
_TORCH_THAT_DROPS = ("activation.py", "dropout.py", "rnn.py", "transformer.py")  # of torch/nn/modules


class Use(enum.Enum):
    """What a read of the flag decides."""

    DROPOUT = "dropout"
    LAYERS = "whether whole layers are left out"
    OTHER = "something else than dropout"
    BOTH = "dropout and something else"
    UNKNOWN = "what its code does not show"


class Read(NamedTuple):
    """One read of the flag.

    Attributes:
        use: What it decides.
        place: Where it stands, for who has to change it.
    """

    use: Use
    place: str


@lru_cache(maxsize=4096)
def read_at(code: CodeType, offset: int, *, leaf: bool) -> Read:
    """Answers what the read of ``.training`` at an offset of some bytecode is for.

    Args:
        code: That reads.
        offset: Of the instruction, a frame's ``f_lasti``.
        leaf: Whether the module has neither weights nor modules within: then its name may say that it drops.
    """
    place = f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})"
    path = code.co_filename.replace("\\", "/")
    if "/torch/" in path and re.search(r"/torch/(nn|_|jit|func|distributed|ao|fx|utils|optim)", path):
        drops = "/torch/nn/modules/" in path and path.endswith(_TORCH_THAT_DROPS)
        return Read(Use.DROPOUT if drops else Use.OTHER, place)
    source = "".join(linecache.getlines(code.co_filename))
    found = _node_at(code, offset, _source(code.co_filename, source)) if source else None
    if found is None:
        return Read(_by_names(code), place)
    node, reads = found
    place = f"{code.co_name} ({code.co_filename}:{node.lineno})"
    owner = reads.class_around(node)
    if owner and _WHOLE_LAYERS.search(owner):
        return Read(Use.LAYERS, place)
    if leaf and owner and re.search("drop", owner, re.IGNORECASE):
        return Read(Use.DROPOUT, place)
    return Read(reads.use(node), place)


def use_in(text: str) -> Use:
    """Answers what the reads of ``.training`` in a piece of source are for, all together: TorchScript's, say."""
    reads = _source("", text)
    if reads is None:
        return Use.DROPOUT if _DROPOUT.search(text) else Use.OTHER
    return _together(reads.use(node) for node in reads.nodes)


def _together(uses: Iterator[Use]) -> Use:
    found = set(uses) - {Use.UNKNOWN}
    if len(found) > 1:
        return Use.BOTH
    return found.pop() if found else Use.UNKNOWN


def _by_names(code: CodeType) -> Use:
    """Answers what a read is for where there is no source: told from the names that the code around it uses."""
    names = (*code.co_names, *code.co_varnames, *(c for c in code.co_consts if isinstance(c, str)))
    if any(map(_WHOLE_LAYERS.search, names)):
        return Use.LAYERS
    if any(map(_OTHER_NOISE.search, names)):
        return Use.OTHER
    return Use.DROPOUT if any(_DROPPING.search(name) or "bernoulli" in name for name in names) else Use.OTHER


@lru_cache(maxsize=256)
def _source(filename: str, text: str) -> "_Source | None":
    try:
        return _Source(ast.parse(text))
    except (SyntaxError, ValueError):
        return None


def _node_at(code: CodeType, offset: int, reads: "_Source | None") -> "tuple[ast.expr, _Source] | None":
    """Answers the expression that an instruction evaluates, if it is a read of the flag."""
    if reads is None:
        return None
    if hasattr(code, "co_positions"):
        place = list(code.co_positions())[offset // 2]
        ends = (node for node in reads.nodes if (node.end_lineno, node.end_col_offset) == (place[1], place[3]))
        return next(((node, reads) for node in ends), None)
    return _node_on_line(code, offset, reads)


def _node_on_line(code: CodeType, offset: int, reads: "_Source") -> "tuple[ast.expr, _Source] | None":
    """Answers the same before Python 3.11, whose bytecode tells of lines alone."""
    line, loads = 0, list[tuple[int, int]]()
    for instruction in dis.get_instructions(code):
        line = getattr(instruction, "starts_line", None) or line
        if instruction.argval == "training":
            loads.append((line, instruction.offset))
    line = next((line for line, at in loads if at == offset), 0)
    of_line = [at for on, at in loads if on == line]
    nodes = [node for node in reads.nodes if node.lineno == line]
    if offset in of_line and len(nodes) == len(of_line):
        return nodes[of_line.index(offset)], reads
    return (nodes[0], reads) if len({reads.use(node) for node in nodes}) == 1 else None


class _Source:
    """A piece of source, and what its reads of the flag are for.

    Attributes:
        nodes: The reads, in their order.
    """

    def __init__(self, tree: ast.AST) -> None:
        self._parents: dict[ast.AST, ast.AST] = {}
        self._functions: dict[str, list[ast.FunctionDef]] = {}
        self.nodes: list[ast.expr] = []
        self._uses: dict[ast.expr, Use] = {}
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                self._parents[child] = node
            if isinstance(node, ast.FunctionDef):
                self._functions.setdefault(node.name, []).append(node)
            elif _reads_flag(node):
                self.nodes.append(node)  # type: ignore[arg-type]
        self.nodes.sort(key=lambda node: (node.lineno, node.col_offset))

    def class_around(self, node: ast.AST) -> str | None:
        """Answers the name of the class that a piece of code belongs to."""
        while node in self._parents:
            node = self._parents[node]
            if isinstance(node, ast.ClassDef):
                return node.name
        return None

    def use(self, node: ast.expr) -> Use:
        """Answers what a read is for."""
        if node not in self._uses:
            self._uses[node] = Use.UNKNOWN  # to itself, in code that goes in a circle
            self._uses[node] = self._climb(node, [], False)
        return self._uses[node]

    # ---------------------------------------------------------------- inside

    def _climb(self, node: ast.AST, words: list[str], negated: bool) -> Use:
        """Follows a value outwards to what it decides; ``words`` are the names met on the way."""
        parent = self._parents.get(node)
        if isinstance(parent, ast.UnaryOp):
            return self._climb(parent, words, negated != isinstance(parent.op, ast.Not))
        if isinstance(parent, (ast.BoolOp, ast.BinOp, ast.Compare)):
            return self._climb(parent, [*words, *_names_in(parent)], negated)
        if isinstance(parent, (ast.Tuple, ast.List, ast.Starred, ast.FormattedValue)):
            return self._climb(parent, words, negated)
        if isinstance(parent, ast.IfExp):
            return self._choice(parent, node, words, negated)
        if isinstance(parent, ast.keyword):
            return self._argument(parent, [*words, parent.arg or ""], negated)
        if isinstance(parent, ast.Call) and node is not parent.func:
            return self._argument(node, words, negated)
        if isinstance(parent, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            return self._variable(parent, words)
        if isinstance(parent, (ast.If, ast.While)) and node is parent.test:
            return self._guard(parent, words, negated)
        if isinstance(parent, ast.Dict):
            keys = [key.value for key, value in zip(parent.keys, parent.values, strict=True)
                    if value is node and isinstance(key, ast.Constant)]  # fmt: skip
            return _by_words([*words, *map(str, keys)])
        if isinstance(parent, (ast.Return, ast.Lambda)):
            return _by_words(words)
        return _by_words(words) if words else Use.UNKNOWN

    def _choice(self, choice: ast.IfExp, node: ast.AST, words: list[str], negated: bool) -> Use:
        """``a if training else b``: of numbers, or of what is computed."""
        if node is not choice.test:
            return self._climb(choice, words, negated)
        guarded = choice.orelse if negated else choice.body
        if not _calls([choice.body, choice.orelse]):
            return self._climb(choice, [*words, *_names_in(choice)], False)
        return self._guarded([ast.Expr(guarded)], choice.test)

    def _argument(self, node: ast.AST, words: list[str], negated: bool) -> Use:
        """The flag, or what depends on it, given to a function."""
        call = self._parents[node]
        assert isinstance(call, ast.Call)
        name = _name(call.func)
        if name in ("bool", "int", "float"):
            return self._climb(call, words, negated)
        use = _by_words([*words, name])
        if use is not Use.UNKNOWN:
            return use
        if name.endswith(("batch_norm", "instance_norm", "rrelu")):
            return Use.OTHER
        return _together(
            self._of_variable(function, parameter)
            for function in self._functions.get(name, [])
            if (parameter := _parameter(function, call, node)) is not None
        )

    def _variable(self, assignment: ast.Assign | ast.AnnAssign | ast.NamedExpr, words: list[str]) -> Use:
        targets = assignment.targets if isinstance(assignment, ast.Assign) else [assignment.target]
        use = _by_words([*words, *(name for target in targets for name in _names_in(target))])
        if use is not Use.UNKNOWN or len(targets) != 1 or not isinstance(targets[0], ast.Name):
            return use
        function: ast.AST = assignment
        while function in self._parents and not isinstance(function, (ast.FunctionDef, ast.Lambda)):
            function = self._parents[function]
        if isinstance(assignment, ast.NamedExpr):
            return _together(iter((self._of_variable(function, targets[0].id), self._climb(assignment, words, False))))
        return self._of_variable(function, targets[0].id)

    def _of_variable(self, function: ast.AST, name: str) -> Use:
        """Answers what a variable of a function is for."""
        return _together(
            self.use(node)
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
        )

    def _guard(self, guard: ast.If | ast.While, words: list[str], negated: bool) -> Use:
        body = guard.orelse if negated else guard.body
        if negated and not body and isinstance(guard.body[-1], (ast.Return, ast.Raise, ast.Continue)):
            body = self._after(guard)
        return self._guarded(body, guard.test)

    def _after(self, statement: ast.stmt) -> list[ast.stmt]:
        parent = self._parents[statement]
        for field in ("body", "orelse", "finalbody"):
            block = getattr(parent, field, None)
            if isinstance(block, list) and statement in block:
                return block[block.index(statement) + 1 :]
        return []

    def _guarded(self, body: Sequence[ast.stmt], test: ast.expr) -> Use:
        """Answers what a branch that is taken in training alone does."""
        names = [name for part in (test, *body) for name in _names_in(part)]
        if any(map(_WHOLE_LAYERS.search, names)):
            return Use.LAYERS
        if not body:
            return Use.OTHER
        calls = _calls(body)
        draws = [name for name in calls if _DROPOUT.search(name) or "bernoulli" in name.lower()]
        draws += ["rand"] if _compares_random(body) and any(map(_multiplies, body)) else []
        if not draws:
            return Use.OTHER
        plain = all(
            _PLAIN_CALL.fullmatch(name) or name in ("rand", "rand_like", "sample") or name in draws for name in calls
        )
        return Use.DROPOUT if plain and not any(map(_goes_elsewhere, body)) else Use.BOTH


def _reads_flag(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "training" and isinstance(node.ctx, ast.Load)
    if not isinstance(node, ast.Call) or _name(node.func) != "getattr":
        return False
    return any(isinstance(arg, ast.Constant) and arg.value == "training" for arg in node.args[1:2])


def _by_words(words: Sequence[str]) -> Use:
    if any(map(_WHOLE_LAYERS.search, words)):
        return Use.LAYERS
    return Use.DROPOUT if any(map(_DROPPING.search, words)) else Use.UNKNOWN


def _name(function: ast.expr) -> str:
    """Answers the last name of what is called; of ``Function.apply``, the function's."""
    if isinstance(function, ast.Attribute):
        return _name(function.value) if function.attr == "apply" else function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _names_in(tree: ast.AST) -> list[str]:
    nodes = list(ast.walk(tree))
    attributes = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    return attributes + [node.id for node in nodes if isinstance(node, ast.Name)]


def _calls(trees: Sequence[ast.AST]) -> list[str]:
    return [_name(node.func) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _compares_random(body: Sequence[ast.AST]) -> bool:
    """Whether uniform numbers are compared or rounded down, as masks are drawn."""
    found = [
        name for tree in body for node in ast.walk(tree) if isinstance(node, ast.Compare) for name in _calls([node])
    ]
    calls = _calls(body)
    return any(name in ("rand", "rand_like") for name in found) or (
        any(name in ("rand", "rand_like") for name in calls) and any(name in ("floor", "floor_") for name in calls)
    )


def _multiplies(tree: ast.AST) -> bool:
    return any(
        (isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, (ast.Mult, ast.Div)))
        or (isinstance(node, ast.Call) and _name(node.func) in ("mul", "mul_", "multiply"))
        for node in ast.walk(tree)
    )


def _goes_elsewhere(tree: ast.AST) -> bool:
    """Whether a branch does what no dropout does: several answers, parts written to, another way through a loop."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Continue, ast.Break, ast.Yield, ast.For, ast.While, ast.With, ast.Delete)):
            return True
        if isinstance(node, ast.Return) and isinstance(node.value, (ast.Tuple, ast.Dict)):
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            return True
    return False


def _parameter(function: ast.FunctionDef, call: ast.Call, node: Any) -> str | None:
    """Answers the name of the parameter that an argument of a call becomes."""
    if isinstance(node, ast.keyword):
        return node.arg
    if node not in call.args:
        return None
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if names[:1] == ["self"]:
        names = names[1:]
    index = call.args.index(node)
    return names[index] if index < len(names) else None

"""One small model for each way of writing dropout, with that dropout alone, at rate ``p``."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import dropout as imported_dropout
from torch.nn.functional import scaled_dot_product_attention as imported_attention
from torch.utils.checkpoint import checkpoint

T, E = 4, 8
X = torch.randn(5, T, E, generator=torch.Generator().manual_seed(7))
PADDING = torch.tensor([[False] * (T - k) + [True] * k for k in (0, 1, 2, 0, 3)])

Function = Callable[[nn.Module, Tensor], Tensor]


class Around(nn.Module):
    """Linear, then something on (B, T, E) that drops, then a classifier."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(E, E)
        self.inner = inner
        self.head = nn.Linear(T * E, 3)

    def forward(self, x: Tensor, *padding: Tensor) -> Tensor:
        return self.head(self.inner(self.stem(x), *padding).flatten(1))


class Written(nn.Module):
    """Dropout as ``function(self, x)`` writes it."""

    def __init__(self, function: Function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(E, E))
        self.position = nn.Parameter(torch.randn(T, E))
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Shaped(nn.Module):
    def __init__(self, module: nn.Module, *shape: int) -> None:
        super().__init__()
        self.module, self.shape = module, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.reshape(len(x), *self.shape)).reshape(len(x), T, E)


class TwoNames(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.first = nn.Dropout(p)
        self.second = self.first
        self.linear = nn.Linear(E, E)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.linear(self.second(x))))


class Unregistered(nn.Module):
    """A dropout in a plain list, which ``train()`` and ``eval()`` do not reach."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.hidden = [nn.Dropout(p)]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


class Attention(nn.Module):
    """Multi-head attention with ``mix(self, q, k, v)`` on tensors (B, H, T, E / H)."""

    def __init__(self, mix: Callable[..., Tensor]) -> None:
        super().__init__()
        self.project = nn.Linear(E, 3 * E)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).reshape(len(x), T, 3, 2, E // 2).permute(2, 0, 3, 1, 4)
        return self.mix(self, q, k, v).transpose(1, 2).reshape(len(x), T, E)


class TorchAttention(nn.Module):
    def __init__(self, p: float, *, need_weights: bool, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(E, 2, dropout=p, batch_first=batch_first)
        self.need_weights, self.batch_first = need_weights, batch_first

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        out = self.attention(x, x, x, need_weights=self.need_weights, key_padding_mask=padding)[0]
        return out if self.batch_first else out.transpose(0, 1)


class Encoder(nn.Module):
    """nn.TransformerEncoder; ``only`` names the dropout that stays, of dropout, dropout1, dropout2 and self_attn."""

    def __init__(self, p: float, *, only: str | None = None, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(E, 2, 16, dropout=p, batch_first=True, **options)
        for name in ("dropout", "dropout1", "dropout2"):
            if only not in (None, name):
                getattr(layer, name).p = 0.0
        if only not in (None, "self_attn"):
            layer.self_attn.dropout = 0.0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "enable_nested_tensor")
            self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        if padding is None:
            return self.encoder(x)
        out = self.encoder(x, src_key_padding_mask=padding)
        return F.pad(out, (0, 0, 0, T - out.shape[1])) * ~padding.unsqueeze(-1)


class Decoder(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(E, 2, 16, dropout=p, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class Recurrent(nn.Module):
    def __init__(self, kind: Any, p: float, **options: Any) -> None:
        super().__init__()
        self.layers = kind(E, E, num_layers=2, dropout=p, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[0][..., :E]


def scripted(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit", FutureWarning)
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        return torch.jit.script(module)


class Functional(nn.Module):
    """Functional dropout in a form that TorchScript compiles."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=self.training)


class Twice(nn.Dropout):
    """A dropout of one's own, by inheritance."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


def written(function: Callable[[float, nn.Module, Tensor], Tensor]) -> Callable[[float], nn.Module]:
    return lambda p: Written(lambda module, x: function(p, module, x))


def attention(mix: Callable[..., Tensor]) -> Callable[[float], nn.Module]:
    return lambda p: Attention(lambda module, *qkv: mix(p, module, *qkv))


def _eager(p: float, m: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return F.dropout(weights, p, training=m.training) @ v


def _in_training_only(p: float, m: nn.Module, x: Tensor) -> Tensor:
    if m.training:
        x = F.dropout(x, p)
    return x


def _sdpa(p: float, m: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=p if m.training else 0.0)


def _masked_sdpa(p: float, m: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(T, T).masked_fill(torch.eye(T).bool(), -1.0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p if m.training else 0.0)


class OwnFunction(torch.autograd.Function):
    """Dropout with a backward of its own, as DeBERTa has it."""

    @staticmethod
    def forward(context: Any, x: Tensor, p: float) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(1 - p) / (1 - p)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return gradient, None


class ByHand(nn.Module):
    """Dropout as a layer's own code writes it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.weight = nn.Parameter(torch.zeros(1))


class FilledByHand(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(1 - self.p) / (1 - self.p) if self.training and self.p > 0 else x


class DrawnByHand(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        mask = torch.bernoulli(torch.full_like(x, 1 - self.p))
        return x * mask / (1 - self.p)


class ComparedByHand(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p > 0:
            x = x * (torch.rand_like(x) >= self.p) / (1 - self.p)
        return x


class SameForAllTokens(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        training = self.training
        if training and self.p > 0:
            x = x * torch.empty(len(x), 1, E).bernoulli_(1 - self.p) / (1 - self.p)
        return x


class FromDistributions(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p > 0:
            mask = torch.distributions.Bernoulli(1 - self.p).sample(x.shape)
            x = x * mask / (1 - self.p)
        return x


class StableDropout(nn.Module):
    """As in DeBERTa: neither weights nor modules within, and a name that says what it does."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p > 0:
            return OwnFunction.apply(x, self.p)
        return x


KINDS: dict[str, Callable[[float], nn.Module]] = {
    "Dropout": lambda p: nn.Dropout(p),
    "Dropout in place": lambda p: nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(p, inplace=True)),
    "Dropout1d": lambda p: nn.Dropout1d(p),
    "Dropout2d": lambda p: Shaped(nn.Dropout2d(p), 4, 2, 4),
    "Dropout3d": lambda p: Shaped(nn.Dropout3d(p), 4, 2, 2, 2),
    "AlphaDropout": lambda p: nn.AlphaDropout(p),
    "FeatureAlphaDropout": lambda p: nn.FeatureAlphaDropout(p),
    "subclass": lambda p: Twice(p),
    "one module under two names": TwoNames,
    "unregistered module": Unregistered,
    "scripted Dropout": lambda p: scripted(nn.Sequential(nn.Linear(E, E), nn.Dropout(p))),
    "scripted F.dropout": lambda p: scripted(Functional(p)),
    "F.dropout": written(lambda p, m, x: F.dropout(x, p, training=m.training)),
    "F.dropout always on": written(lambda p, m, x: F.dropout(x, p, training=True)),
    "F.dropout if training": written(_in_training_only),
    "F.dropout in place": written(lambda p, m, x: F.dropout(x, p, m.training, inplace=True)),
    "F.dropout imported": written(lambda p, m, x: imported_dropout(x, p, m.training)),
    "F.dropout1d": written(lambda p, m, x: F.dropout1d(x, p, m.training)),
    "F.dropout2d": written(lambda p, m, x: F.dropout2d(x.unsqueeze(-1), p, m.training).squeeze(-1)),
    "F.alpha_dropout": written(lambda p, m, x: F.alpha_dropout(x, p, m.training)),
    "F.feature_alpha_dropout": written(lambda p, m, x: F.feature_alpha_dropout(x, p, m.training)),
    "torch.dropout": written(lambda p, m, x: torch.dropout(x, p, m.training)),
    "torch.dropout_": written(lambda p, m, x: torch.dropout_(x + 0, p, m.training)),
    "torch.native_dropout": written(lambda p, m, x: torch.native_dropout(x, p, m.training)[0]),
    "dropout of a weight": written(lambda p, m, x: F.linear(x, F.dropout(m.weight, p, m.training))),
    "dropout of a position": written(lambda p, m, x: x + F.dropout(m.position, p, m.training)),
    "checkpointed": written(lambda p, m, x: checkpoint(lambda h: F.dropout(h, p, m.training), x, use_reentrant=False)),
    "by hand, bernoulli_": FilledByHand,
    "by hand, bernoulli": DrawnByHand,
    "by hand, rand_like": ComparedByHand,
    "by hand, the same for all tokens": SameForAllTokens,
    "by hand, distributions": FromDistributions,
    "by hand, autograd.Function": StableDropout,
    "vmap": written(
        lambda p, m, x: torch.func.vmap(lambda row: F.dropout(row, p, m.training), randomness="different")(x)
    ),
    "attention, eager": attention(_eager),
    "attention, SDPA": attention(_sdpa),
    "attention, SDPA masked": attention(_masked_sdpa),
    "attention, SDPA causal": attention(
        lambda p, m, *qkv: F.scaled_dot_product_attention(*qkv, None, p if m.training else 0.0, True)
    ),
    "attention, SDPA imported": attention(lambda p, m, *qkv: imported_attention(*qkv, dropout_p=p * m.training)),
    "MultiheadAttention": lambda p: TorchAttention(p, need_weights=False, batch_first=True),
    "MultiheadAttention, weights": lambda p: TorchAttention(p, need_weights=True, batch_first=True),
    "MultiheadAttention, sequence first": lambda p: TorchAttention(p, need_weights=False, batch_first=False),
    "MultiheadAttention, weights, sequence first": lambda p: TorchAttention(p, need_weights=True, batch_first=False),
    "TransformerEncoder": Encoder,
    "TransformerEncoder, attention": lambda p: Encoder(p, only="self_attn"),
    "TransformerEncoder, feed-forward": lambda p: Encoder(p, only="dropout"),
    "TransformerEncoder, residual": lambda p: Encoder(p, only="dropout1"),
    "TransformerEncoder, second residual": lambda p: Encoder(p, only="dropout2"),
    "TransformerEncoder, norm first": lambda p: Encoder(p, norm_first=True),
    "TransformerEncoder, padded": Encoder,
    "TransformerEncoder, padded, attention": lambda p: Encoder(p, only="self_attn"),
    "MultiheadAttention, padded": lambda p: TorchAttention(p, need_weights=False, batch_first=True),
    "MultiheadAttention, padded, weights": lambda p: TorchAttention(p, need_weights=True, batch_first=True),
    "TransformerDecoderLayer": Decoder,
    "LSTM": lambda p: Recurrent(nn.LSTM, p),
    "GRU": lambda p: Recurrent(nn.GRU, p),
    "RNN, bidirectional": lambda p: Recurrent(nn.RNN, p, bidirectional=True),
}
# Here the plain loop itself uses one mask for all inputs, which per-input masks need not.
WITHOUT_A_BATCH = ("dropout of a weight", "dropout of a position")
# One for each way in which dropout reaches the code that draws it, for what does not depend on how it is written.
REPRESENTATIVES = (
    "Dropout",
    "AlphaDropout",
    "scripted F.dropout",
    "torch.native_dropout",
    "dropout of a weight",
    "by hand, bernoulli_",
    "attention, SDPA",
    "MultiheadAttention, padded, weights",
    "TransformerEncoder, padded",
    "LSTM",
)


def inputs_of(kind: str) -> Any:
    """What the model of that kind is called with."""
    return [X, PADDING] if "padded" in kind else X


def model_of(kind: str, p: float = 0.5) -> nn.Module:
    """A model, trained as it were, with one kind of dropout alone."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = Around(KINDS[kind](p))
        with torch.no_grad():
            model.head.weight.mul_(4)
    return model.eval()

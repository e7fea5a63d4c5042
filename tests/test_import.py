import ast
import subprocess
import sys

import pytest

import hesitant

ENGINES = (
    "fastapi", "huggingface_hub", "lightning", "mlflow", "onnx", "onnxruntime", "onnxscript", "pyspark", "ray",
    "keras", "tensorflow", "jax",
    "uvicorn",
)  # fmt: skip
ROOMS = (
    "cli", "data", "demos", "detection", "evaluation", "integrations", "methods", "nn", "plots", "prediction", "report",
    "training",
)  # fmt: skip


def imported(code: str, among: list[str]) -> list[str]:
    """What a fresh process has imported after the code."""
    code = f"import sys; {code}; print([name for name in {among} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    return ast.literal_eval(found.stdout)


def test_importing_all_public_names_is_light() -> None:
    heavy = ["sklearn", "matplotlib", "transformers", "accelerate", "torchmetrics", "pandas", "torch._dynamo", "timm"]
    assert imported("from hesitant import *", heavy) == []


def test_the_name_alone_imports_nothing() -> None:
    assert imported("import hesitant", ["torch", "numpy"]) == []


def test_no_room_imports_an_engine() -> None:
    assert imported("; ".join(f"import hesitant.{room}" for room in ROOMS), list(ENGINES)) == []


def test_public_names_and_rooms_are_attributes() -> None:
    assert set(hesitant.__all__) <= set(dir(hesitant))
    for name in hesitant.__all__:
        assert getattr(hesitant, name) is not None
    assert imported("import hesitant; hesitant.nn.SpectralNormalizer", ["hesitant.nn", "hesitant.methods"]) == [
        "hesitant.nn"
    ]
    with pytest.raises(AttributeError, match="no attribute 'sngp'"):
        hesitant.sngp  # noqa: B018

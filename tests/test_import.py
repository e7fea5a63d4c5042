import subprocess
import sys


def test_importing_is_light():
    heavy = ["sklearn", "matplotlib", "transformers", "accelerate", "torchmetrics", "pandas", "torch._dynamo", "timm"]
    code = f"import sys, hesitant; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"

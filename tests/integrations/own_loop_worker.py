"""One of several workers of the loop on Accelerate in docs/own-loop.md; ``test_own_loop_workers`` starts them."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.integrations.running import states
from tests.leaving import leave
from tests.markdown import ROOT, blocks


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    code = blocks(ROOT / "docs" / "own-loop.md", "python")
    (shown,) = [block for block in code if "Accelerator(" in block]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code[0], names)  # the imports, the data and the network
    exec(shown.replace('"saved"', repr(str(folder / "saved"))), names)
    answer = {"states": states(names["method"]), "metrics": names["metrics"].of_all_workers().compute()}
    torch.save(answer, folder / f"{dist.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

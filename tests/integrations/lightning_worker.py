"""One of several workers of Lightning's Trainer; ``test_lightning_workers`` starts them."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from tests.integrations.running import states
from tests.integrations.tiny_lightning import FAR, TEST, Classifier, network, trained
from tests.leaving import leave
from torch.nn.parallel import DistributedDataParallel

from hesitant.evaluation import StreamingMetrics
from hesitant.integrations.lightning import FitCovariance


class Noted(Classifier):
    """Notes what DistributedDataParallel would broadcast."""

    def on_train_start(self) -> None:
        parallel = self.trainer.strategy.model
        assert isinstance(parallel, DistributedDataParallel)
        names = dict(self.named_buffers())
        self.broadcast = [name for name, buffer in names.items() if any(buffer is b for b in parallel.modules_buffers)]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options = {"strategy": "ddp", "devices": 2}
    answer = {}
    module = Noted(network(norm=False), l2_penalty=0.01)
    checkpoint = ModelCheckpoint(dirpath=folder / "best", monitor="nll", save_last=True)
    trained(folder, module, checkpoint, **options)
    answer["fitted"] = states(module)
    answer["validated"], answer["broadcast"] = module.validated, module.broadcast
    answer["best"], answer["last"] = checkpoint.best_model_path, checkpoint.last_model_path

    averaged = Classifier()
    steps = ModelCheckpoint(dirpath=folder / "steps", every_n_train_steps=2, save_top_k=-1)
    trained(folder, averaged, EMAWeightAveraging(decay=0.9), FitCovariance(num_inputs=20), steps, **options)
    answer["averaged"] = states(averaged)

    shares = StreamingMetrics()
    for row in range(dist.get_rank(), len(TEST), 2):
        shares.update(averaged.method.predict(TEST[row : row + 1]))
        shares.update_ood("far", averaged.method.predict(FAR[row : row + 1]))
    answer["metrics"] = shares.of_all_workers().compute()
    torch.save(answer, folder / f"{dist.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""One of several workers of Hugging Face's Trainer; ``test_transformers_workers`` starts them."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.integrations.running import states, trainer
from tests.integrations.tiny_bert import TEST, TRAIN, sngp
from tests.leaving import leave

from hesitant.integrations.transformers import FitCovariance


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    method = sngp(l2_penalty=0.01)
    runs = trainer(method, folder / "run", FitCovariance(), num_train_epochs=3, load_best_model_at_end=True)
    runs.train()
    rank = dist.get_rank()
    answer = {"best": states(method), "log": runs.state.log_history, "checkpoint": runs.state.best_model_checkpoint}
    answer["logits"] = torch.from_numpy(runs.predict(TEST).predictions)

    whole = sngp()
    trainer(whole, folder / "whole", FitCovariance(num_inputs=16), activation_checkpointing=True).train()
    answer["whole"] = states(whole)
    again = sngp()
    resumed = trainer(again, folder / "resumed", FitCovariance(num_inputs=16), activation_checkpointing=True)
    resumed.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-2"))
    answer["resumed"] = states(again)

    odd = sngp()  # of whose data the workers have shares of two sizes
    trainer(odd, folder / "odd", FitCovariance(), train_dataset=TRAIN[:37], max_steps=1, eval_strategy="no").train()
    answer["odd"] = states(odd)
    torch.save(answer, folder / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

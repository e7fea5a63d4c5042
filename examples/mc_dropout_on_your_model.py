"""Monte Carlo dropout on your model
=================================

A network that was trained with dropout can be asked many times with its dropout left on. Where the answers differ, it
does not know. Nothing is trained anew and nothing of the model is changed: ``MCDropout`` goes around it.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesitant
from hesitant.data import digits
from hesitant.evaluation import accuracy, auroc, ece, nll
from hesitant.plots import scan, score_histogram

# %%
# A model of your own. This one reads a scan of 8 x 8 pixels as a sentence of eight rows. Dropout is written in three
# ways: within the attention, as modules within the encoder layer, and as a function before the classifier. The first
# and the last are what a search for ``nn.Dropout`` modules misses.


class RowReader(nn.Module):
    """Classifies 8 x 8 scans: rows are embedded, attend to each other, and their mean is classified."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.position = nn.Parameter(0.1 * torch.randn(8, 64))
        self.encoder = nn.TransformerEncoderLayer(64, nhead=4, dim_feedforward=128, dropout=0.2, batch_first=True)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Answers with logits (B, C) for scans (B, 64)."""
        rows = self.embed(x.reshape(-1, 8, 8)) + self.position  # (B, 8, 64)
        pooled = self.encoder(rows).mean(dim=1)  # (B, 64)
        logits: Tensor = self.classifier(F.dropout(pooled, 0.2, self.training))
        return logits


# %%
# The data come with scikit-learn: scans of the digits 0 to 7, and of 8 and 9, which the model is never shown. The loop
# is the one that you have already.
torch.manual_seed(0)
data = digits(generator=torch.Generator().manual_seed(0))
network = RowReader(num_classes=8)
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
for _ in range(40):
    for batch in torch.utils.data.DataLoader(data.train, batch_size=64, shuffle=True):
        inputs, targets = batch
        loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# The same weights, asked once with the dropout off, and a hundred times with it on.
methods = {"plain": hesitant.Deterministic(network), "MC dropout": hesitant.MCDropout(network, num_samples=100)}
for name, method in methods.items():
    known, unknown = method.predict(data.test), method.predict(data.ood)
    detected = auroc(known.ood_score, unknown.ood_score)
    print(
        f"{name}: accuracy {accuracy(known):.3f}, NLL {nll(known):.3f}, ECE {ece(known):.3f},"
        f" AUROC of 8 and 9 {detected:.3f}"
    )

# %%
# ``known`` and ``unknown`` are now what MC dropout says. Their ``probs`` are the mean over the passes, and two things
# tell how far the passes differ:
#
# - ``class_std``, of each class: the standard deviation of its probability.
# - ``mutual_information``, of each input, in nats: the entropy of the mean (``predictive_entropy``) less the mean
#   entropy of the passes (``expected_entropy``). It is high where passes are sure of different classes, and near zero
#   where all of them are sure of one, or unsure alike.
for digits_of, answer in {"0 to 7": known, "8 and 9": unknown}.items():
    between, total = answer.mutual_information.mean(), answer.predictive_entropy.mean()
    print(f"{digits_of}: mean entropy {total:.3f}, of which {between:.3f} is mutual information")
print(f"AUROC of 8 and 9 by mutual information {auroc(known.mutual_information, unknown.mutual_information):.3f}")

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
score_histogram(
    known.mutual_information,
    unknown.mutual_information,
    ax,
    names=("0 to 7, not trained on", "8 and 9"),
    label="mutual information (nats)",
    log=False,
)
plt.show()

# %%
# The test scan that the passes agree about most, the one that they agree about least, and an 8 or 9 of either kind. The
# whiskers are one ``class_std``. The third shows the limit: where every pass takes an 8 for a 1, there is no
# disagreement to tell it by.
figure, axes = plt.subplots(2, 4, figsize=(11, 4.6), layout="constrained", height_ratios=(1, 1.3))
column = 0
for inputs, answer, seen in ((data.test.tensors[0], known, True), (data.ood, unknown, False)):
    order = answer.mutual_information.argsort()
    for row in (order[0], order[-1]):
        caption = f"mutual information {answer.mutual_information[row]:.2f}"
        scan(inputs[row].reshape(8, 8), axes[0, column], caption=caption, out_of_domain=not seen)
        bars = axes[1, column]
        bars.bar(range(8), answer.probs[row].numpy(), yerr=answer.class_std[row].numpy(), color="#56B4E9", capsize=2)
        bars.set(ylim=(0, 1.1), xlabel="class", xticks=range(8), yticks=(0, 0.5, 1))
        column += 1
axes[1, 0].set_ylabel("probability")
plt.show()

# %%
# If no dropout takes part, there is nothing to sample from. ``MCDropout`` then says so, instead of a variance of zero.
try:
    hesitant.MCDropout(nn.Sequential(nn.Linear(64, 8))).predict(data.test)
except ValueError as error:
    print(error)

"""Deep ensemble
=============

Several networks, each trained from weights of its own, agree on what the data have taught them. Where they disagree,
the data have left it open. They may be made and trained together, or be models that you have already.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import hesitant
from hesitant.data import digits
from hesitant.evaluation import accuracy, auroc, nll
from hesitant.plots import scan

data = digits(generator=torch.Generator().manual_seed(0))  # scans of 0 to 7 to learn; 8 and 9 are never shown

# %%
# From a function that makes one model. Each member gets its own initialisation, its own order of the data and its own
# dropout. Members of one architecture train together, in one vectorised pass, where that can be and pays.


def build() -> nn.Module:
    """Makes one network, its weights drawn as torch draws them."""
    hidden = [nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*hidden, nn.Linear(128, 8))


ensemble = hesitant.DeepEnsemble.from_builder(build, num_members=10, seed=0)
history = hesitant.fit(ensemble, data.train, epochs=40)
print(f"ten members trained in {history.seconds:.1f} s")

# %%
# What ten are worth beside one of them. No member is told about the others: the mean of their probabilities is the
# ensemble's answer.


def figures(known: hesitant.Prediction, unknown: hesitant.Prediction) -> str:
    """How good the probabilities are, and how well the score of each tells 8s and 9s apart."""
    detected = auroc(known.ood_score, unknown.ood_score)
    return f"accuracy {accuracy(known):.3f}, NLL {nll(known):.3f}, AUROC of 8 and 9 {detected:.3f}"


one = hesitant.Deterministic(ensemble.members[0])
known, unknown = ensemble.predict(data.test), ensemble.predict(data.ood)
print("one member:", figures(one.predict(data.test), one.predict(data.ood)))
print("all ten:", figures(known, unknown))

# %%
# The uncertainty comes in two parts. The members' own mean entropy (``expected_entropy``) is doubt that they share, and
# the rest (``mutual_information``) is their disagreement. Scans of 8 and 9 have more of both.
print(f"AUROC of 8 and 9 by disagreement: {auroc(known.mutual_information, unknown.mutual_information):.3f}")

figure, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
ax.scatter(known.expected_entropy, known.mutual_information, s=14, color="#0072B2", label="0 to 7, not trained on")
ax.scatter(unknown.expected_entropy, unknown.mutual_information, s=14, color="#C2185B", marker="x", label="8 and 9")
ax.set(xlabel="doubt that members share: expected entropy (nats)", ylabel="disagreement: mutual information (nats)")
ax.legend()
plt.show()

# %%
# What they disagree on: the eight scans of most mutual information, and how many members say what. Members that say the
# same may still disagree about how sure they are.
inputs = torch.cat([data.test.tensors[0], data.ood])
answers = ensemble.predict(inputs)
votes = torch.stack([hesitant.Deterministic(member).predict(inputs).labels for member in ensemble.members])  # (10, N)
figure, axes = plt.subplots(1, 8, figsize=(13, 2.7), layout="constrained")
for row, ax in zip(answers.mutual_information.argsort(descending=True)[:8].tolist(), axes, strict=True):
    counts = votes[:, row].bincount(minlength=8)
    said = [f"{count} say {label}" for label, count in enumerate(counts.tolist()) if count > 0]
    seen = row < len(known)
    caption = [f"a {int(data.test.tensors[1][row])}" if seen else "8 or 9", *said]
    scan(inputs[row].reshape(8, 8), ax, caption="\n".join(caption), out_of_domain=not seen)
plt.show()

# %%
# Of models that you have: any list of them, trained apart, of several architectures.


class SmallConvNet(nn.Module):
    """Classifies 8 x 8 scans with two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Linear(32 * 4 * 4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Answers with logits (B, 8) for scans (B, 64)."""
        logits: torch.Tensor = self.classifier(self.features(x.reshape(-1, 1, 8, 8)))
        return logits


torch.manual_seed(0)
convolutional, dense = SmallConvNet(), build()
for network in (convolutional, dense):
    hesitant.fit(network, data.train, epochs=30)
pair = hesitant.DeepEnsemble([convolutional, dense])
print(pair.predict(data.test))

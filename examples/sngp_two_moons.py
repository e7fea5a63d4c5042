"""SNGP in sixty lines
===================

A plain network is as sure far away from everything it was trained on as it is among its data. SNGP is not: where there
were no data, its probabilities fade to one half. This is the task of the TensorFlow tutorial "Uncertainty-aware Deep
Learning with SNGP": two interleaved half circles, one a class, and a cloud of points that belongs to neither.
"""

import warnings

import matplotlib.pyplot as plt
import torch

import hesitant
from hesitant.data import two_moons, two_moons_ood
from hesitant.evaluation import accuracy, auroc
from hesitant.nn import SpectralBoundWarning
from hesitant.nn.models import DeepResNet
from hesitant.plots import points, uncertainty_surface

generator = torch.Generator().manual_seed(0)
train, test = two_moons(1000, generator=generator), two_moons(1000, generator=generator)
cloud = two_moons_ood(500, generator=generator)

# %%
# The plain network, to compare with: residual, six blocks deep, as in the tutorial. Data are a tuple of inputs and
# targets; ``fit`` trains with AdamW, and a training loop of your own would do as well.
plain = hesitant.Deterministic(DeepResNet(2, 2, generator=generator))
hesitant.fit(plain, train, epochs=50)

# %%
# SNGP takes a network over: its last layer becomes a Gaussian process, and the norms of the layers before it are
# bounded, so that the residual blocks keep apart what lies apart. The bound shrinks these fresh weights, which is what
# it is for; the warning about it is meant for pretrained ones.
#
# At the end ``fit`` makes one more pass over the training data, for the covariance of the Gaussian process. The
# variance of the logits is then small among the data and grows with the distance from them. How much it weighs is
# ``mean_field_factor``: 40 was chosen on held-out points of the moons, and the cloud had no part in it.
model = hesitant.SNGP(
    DeepResNet(2, 2, generator=generator), norm_bound=0.9, kernel_scale=1.0, mean_field_factor=40.0, generator=generator
)
warnings.simplefilter("ignore", SpectralBoundWarning)
hesitant.fit(model, train, epochs=50)

# %%
# One forward pass answers with everything. Nobody told either model about the cloud.
for name, method in {"plain": plain, "SNGP": model}.items():
    known, unknown = method.predict(test), method.predict(cloud)
    detected = auroc(known.ood_score, unknown.ood_score)
    print(
        f"{name}: accuracy {accuracy(known):.3f}, mean confidence {known.confidence.mean():.3f} on test points and"
        f" {unknown.confidence.mean():.3f} in the cloud, which is told apart with an AUROC of {detected:.3f}"
    )

# %%
# How unsure they are over the plane: dark is sure, bright is a coin flip. The plain network doubts along one line,
# however far that runs from the data; SNGP is sure where there were points, and nowhere else.
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for ax, (name, method) in zip(axes, {"plain": plain, "SNGP": model}.items(), strict=True):
    uncertainty_surface(method, ax, extent=(-3.5, 3.5, -2.5, 2.5), title=name)
    points(*train, ax, ood=cloud, max_points=100)
axes[0].legend(loc="upper left")
plt.show()

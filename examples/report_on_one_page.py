"""Which method? A report on one page
==================================

Four methods on the same data: ``compare`` makes one table of what they are worth and what they cost, and ``report`` one
HTML page with the verdict, the plots and the inputs themselves.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import hesitant
from hesitant.data import digits
from hesitant.plots import risk_coverage_curves
from hesitant.report import report

# %%
# Scans of 0 to 7 to learn, others of them to compare on, and scans of 8 and 9, which no method is ever shown.
data = digits(generator=torch.Generator().manual_seed(0))


def build() -> nn.Module:
    """Makes one network."""
    hidden = [nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*hidden, nn.Linear(128, 8))


# %%
# All are trained alike. MC dropout needs no training of its own: it is the plain network, with its dropout left on.
torch.manual_seed(0)
network = build()
plain = hesitant.Deterministic(network)
ensemble = hesitant.DeepEnsemble.from_builder(build, num_members=5)
sngp = hesitant.SNGP(build())
histories = {
    "plain": hesitant.fit(plain, data.train, epochs=60),
    "deep ensemble": hesitant.fit(ensemble, data.train, epochs=60),
    "SNGP": hesitant.fit(sngp, data.train, epochs=60),
}
methods = {"plain": plain, "MC dropout": hesitant.MCDropout(network), "deep ensemble": ensemble, "SNGP": sngp}

# %%
# One table. A star marks the best figure of a row and all that the data cannot tell from it; where that is every
# method, there is none.
comparison = hesitant.compare(methods, data.test, ood={"8 and 9": data.ood}, histories=histories)
print(comparison)

# %%
# How many errors are left among the answers when the least certain inputs, up to a fifth, are handed over.
ax = risk_coverage_curves(comparison.predictions, max_risk=0.02)
ax.set_xlim(0.8, 1.0)
plt.show()

# %%
# The page: which method to use, what it may answer by itself at which risk, the plots, and the scans that it is least
# sure of or confidently wrong about. Thresholds are chosen on one half of the data and checked on the other. Because
# there are 8s and 9s, each also hands over at least the least certain twentieth of the known scans that it was chosen
# on. It is one file, which needs no network; open it in a browser.
path = report(comparison, "report.html", title="Scanned digits", max_risk=0.05, image_shape=(8, 8))
print(f"{path.name}: {path.stat().st_size // 1024} KiB")

"""Calibrate, then defer
=====================

A classifier that is used beside people need not answer everything. This one answers what it is sure enough of, with a
promise of how many of these answers are wrong, and hands the rest over.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import hesitant
from hesitant.data import digits, split
from hesitant.evaluation import accuracy, ece, nll
from hesitant.plots import scan, score_histogram

# %%
# Each use needs data of its own: what served one makes the model look better than it is to the next. So the scans are
# parted before anything is trained: to *train* on, to *tune* the temperature on, to *choose* the threshold on, and to
# *test* on, looked at once. Scans of 8 and 9 choose nothing; they are looked at last.
data = digits(generator=torch.Generator().manual_seed(0))
train, tune = split(data.train, [0.8, 0.2])
choose, test = split(data.test, [0.6, 0.4])
print(f"{len(train)} scans to train on, {len(tune)} to tune, {len(choose)} to choose, {len(test)} to test")

# %%
# The model: SNGP on a small network.
torch.manual_seed(0)
hidden = [nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.1)]
model = hesitant.SNGP(nn.Sequential(*hidden, nn.Linear(128, 8)))
hesitant.fit(model, train, epochs=60)

# %%
# **Calibrate**, so that a confidence of .9 is right nine times in ten. One number, the temperature, is fitted, and with
# it SNGP's mean-field factor; which class is the most probable one does not change.
before = model.predict(test)
print(hesitant.calibrate(model, tune))
after = model.predict(test)
print(f"on the test scans: NLL {nll(before):.3f} -> {nll(after):.3f}, ECE {ece(before):.3f} -> {ece(after):.3f}")

# %%
# **Choose a threshold.** With probability .95 over the draw of these scans, at most 5 % of the answers to inputs of
# this kind will be wrong; a smaller risk costs answers. ``budget`` is for when people have time for a tenth of all
# inputs: it hands over the least certain tenth, promises no risk, and needs no targets. With ``guard`` a policy also
# hands over what is least like the training scans, whatever the model says of it: here one in twenty of their kind.
#
# Which of them to use is decided before they are looked at: of several policies that were made on the same data, the
# one that looks best may break its promise more often than it says.
answers = model.predict(choose)
policies = {
    "risk 5 %": hesitant.DeferralPolicy.calibrate(answers, max_risk=0.05),
    "risk 2 %": hesitant.DeferralPolicy.calibrate(answers, max_risk=0.02),
    "risk 5 %, guarded": hesitant.DeferralPolicy.calibrate(answers, max_risk=0.05, guard=0.05),
    "budget 10 %": hesitant.DeferralPolicy.calibrate(answers, budget=0.1),
}
for policy in policies.values():
    print(policy)

# %%
# A promise that the data cannot bear is refused, with what they could bear and how many more it would take.
try:
    hesitant.DeferralPolicy.calibrate(answers, max_risk=0.01)
except ValueError as error:
    print(error)

# %%
# **Test.** What is answered, how much of it rightly, and what becomes of the 8s and 9s, about which every answer is
# wrong.
#
# The promise is about inputs like those that the threshold was chosen on, and says nothing about these. This model errs
# so little that it keeps a promise of 5 % by answering everything, and so it answers 8s and 9s too. Where inputs from
# elsewhere may come, guard the policy: its second threshold lies where known inputs become rare.
unknown = model.predict(data.ood)
for name, policy in policies.items():
    answered, deferred = policy.accept(after), ~policy.accept(unknown)
    print(
        f"{name}: answers {int(answered.sum())} of {len(test)} test scans, {accuracy(after[answered]):.3f} of them"
        f" rightly; hands over {int(deferred.sum())} of {len(unknown)} 8s and 9s"
    )

# %%
# Where the guard's threshold lies.
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
score_histogram(
    after.ood_score,
    unknown.ood_score,
    ax,
    threshold=policies["risk 5 %, guarded"].guard_threshold,
    names=("test scans", "8 and 9"),
    label="out-of-domain score",
)
plt.show()

# %%
# The test scans of least confidence, the first to be handed over.
inputs, targets = zip(*[test[row] for row in range(len(test))], strict=True)
figure, axes = plt.subplots(1, 8, figsize=(12, 1.9), layout="constrained")
for row, ax in zip(after.confidence.argsort()[:8].tolist(), axes, strict=True):
    caption = f"is {int(targets[row])}\nsays {int(after.labels[row])}, {after.confidence[row]:.2f}"
    scan(inputs[row].reshape(8, 8), ax, caption=caption)
plt.show()

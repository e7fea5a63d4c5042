"""Saves a trained model with what it answers, or loads one and prints how far its answers are from those.

python -m tests.keras.on_each_backend.saving save|load FILE.keras
"""

import sys
import warnings

import numpy as np

import keras
from hesitant.keras import ResetCovarianceCallback

from .models import compiled, data, functional

x, y = data()
asked, path = sys.argv[1:]
if asked == "save":
    keras.utils.set_random_seed(0)
    model, with_variance = functional()
    compiled(model).fit(x, y, epochs=2, verbose=0, callbacks=[ResetCovarianceCallback()])
    with_variance.save(path)
    logits, variance = with_variance.predict(x, verbose=0)
    np.savez(path + ".npz", logits=logits, variance=variance)
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras, on what it saved
        loaded = keras.saving.load_model(path)
    answers = dict(zip(("logits", "variance"), loaded.predict(x, verbose=0), strict=True))
    with np.load(path + ".npz") as saved:
        print(max(float(np.abs(answers[name] - saved[name]).max()) for name in answers))

"""How the frozen projection of random Fourier features may be drawn."""

import math
from typing import Any

import numpy as np

import keras


@keras.saving.register_keras_serializable(package="hesitant")
class OrthogonalRandomFeatures(keras.initializers.Initializer):
    """Draws a projection ``(D, M)`` whose columns are exactly orthogonal, block by block of D.

    The same kernel as that of independent Gaussian columns, estimated with less variance; each block is a draw of its
    own. Source: Yu et al., "Orthogonal Random Features", NeurIPS 2016, section 3.

    Args:
        stddev: Standard deviation of an entry.
        seed: Of the draw; the same seed draws the same projection. None draws a seed.
    """

    def __init__(self, stddev: float = 1.0, seed: int | None = None) -> None:
        self.stddev = stddev
        self._seed = seed
        self._drawn_with = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Answers a projection ``(D, M)``."""
        width, number = shape
        generator = np.random.default_rng(self._drawn_with)
        blocks = generator.standard_normal((math.ceil(number / width), width, width))
        q, r = np.linalg.qr(blocks)
        # With the signs of R's diagonal taken out, Q is uniform over the orthogonal group (Mezzadri 2007).
        q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]
        norms = np.linalg.norm(generator.standard_normal(blocks.shape), axis=-1)
        rows = (np.swapaxes(q, -1, -2) * norms[..., None]).reshape(-1, width)[:number]
        return keras.ops.convert_to_tensor(self.stddev * rows.T, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Answers what makes an equal initializer."""
        return {"stddev": self.stddev, "seed": self._seed}

"""Real samples that come with an installed library, in the shape that the networks read.

Samples from files are read by `fsdray.inference.formats`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fsdray.errors import SettingsError

__all__ = ["digits"]

# At 13 of 16, 10.1 % of the pixels of 1024 are 1; in the challenge's own samples 10.4 % are. The
# millionth keeps rounding from deciding about pixels of exactly 13.
_THRESHOLD = 13 + 1e-6


def digits(count: int, neurons: int, *, seed: int | None = None) -> csr_array:
    """Return real handwritten digits, enlarged and thresholded as the challenge does MNIST's.

    The digits are scikit-learn's: 1,797 images of 8×8 pixels from the UCI "Optical Recognition
    of Handwritten Digits" data set (Alpaydin and Kaynak, 1998), with values 0 to 16. Each is
    resized bilinearly to the largest square that `neurons` pixels hold, its pixels over 13
    become 1, the others and those past the square 0. (The challenge: Kepner et al.,
    "Sparse Deep Neural Network Graph Challenge", HPEC 2019.)

    Parameters
    ----------
    count
        Number of samples, 1 to 1797.
    neurons
        Values a sample: the network's inputs.
    seed
        None: the first `count` digits, in the data set's order. A number: `count` different
        ones at random, the same for the same seed.

    Returns
    -------
    scipy.sparse.csr_array
        Float32 zeros and ones, shape (count, neurons), canonical.

    Raises
    ------
    SettingsError
        When there are not so many digits, `neurons` is under 1, `seed` is negative, or
        scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SettingsError(
            "the handwritten digits come with scikit-learn: pip install 'fsdray[inference]'"
        ) from error
    images: NDArray[np.float64] = load_digits().images
    if not 1 <= count <= len(images):
        raise SettingsError(f"{count} digits: give 1 to {len(images)}, as many as there are")
    if neurons < 1:
        raise SettingsError(f"digits for {neurons} neurons: give at least 1")
    if seed is not None:
        if seed < 0:
            raise SettingsError(f"seed is {seed}: give 0 or more, or None for the first digits")
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(images))
        images = images[order]
    side = math.isqrt(neurons)
    resize = _bilinear(images.shape[1], side)
    chosen = []
    for image in images[:count]:  # one at a time: all of them in float64 would fill gigabytes
        large = resize @ image @ resize.T
        chosen.append(np.flatnonzero(large > _THRESHOLD).astype(np.int32))
    indptr = np.cumsum([0, *map(len, chosen)], dtype=np.int32)
    data = np.ones(int(indptr[-1]), dtype=np.float32)
    return csr_array((data, np.concatenate(chosen), indptr), shape=(count, neurons))


def _bilinear(old: int, new: int) -> NDArray[np.float64]:
    """Return the (new, old) matrix that resizes one axis, pixel centres on pixel centres."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(place.astype(np.int64), old - 2)
    matrix = np.zeros((new, old))
    matrix[np.arange(new), left] = left + 1 - place
    matrix[np.arange(new), left + 1] = place - left
    return matrix

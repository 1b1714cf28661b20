"""What a network is: layers of sparse weights, each with its bias and activation rule.

Everything here is validated once, where it is made, and never changes afterwards. How
networks are read, built, divided or run lives in the modules beside this one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from fsdray.errors import SettingsError

__all__ = ["Layer", "Model"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: ``Y' = activation(W·Y + bias)``, with Y of shape (neurons, samples).

    Parameters
    ----------
    weights
        Any SciPy sparse matrix or 2-D array of shape (outputs, inputs). Kept as a
        ``scipy.sparse.csr_array`` of float32 with int32 indices, sorted, without duplicates
        (they are summed) and without stored zeros. Arrays that are already so are not
        copied: do not change them afterwards.
    bias
        A number, or one a neuron: shape (outputs,). Kept in float64, since it is added to
        the float64 sum.
    bias_on
        ``"nonzero"``: the bias is added to nonzero sums only, the rule of the Sparse DNN
        Graph Challenge. ``"all"``: it is added everywhere.
    relu
        Whether negative values become 0.
    clamp
        Upper limit applied after the ReLU; None for none. 32 is the challenge's.

    Raises
    ------
    SettingsError
        When the weights are not two-dimensional, empty or not finite in float32, or a rule
        does not fit them.
    """

    weights: csr_array
    bias: float | NDArray[np.float64]
    bias_on: Literal["nonzero", "all"] = "nonzero"
    relu: bool = True
    clamp: float | None = 32.0

    def __post_init__(self) -> None:
        weights = _canonical(self.weights)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "bias", _checked_bias(self.bias, int(weights.shape[0])))
        if self.bias_on not in ("nonzero", "all"):
            raise SettingsError(f'bias_on is {self.bias_on!r}: use "nonzero" or "all"')
        if self.clamp is not None:
            object.__setattr__(self, "clamp", _checked_clamp(self.clamp))

    @property
    def outputs(self) -> int:
        """Neurons that this layer computes: the rows of its weights."""
        return int(self.weights.shape[0])

    @property
    def inputs(self) -> int:
        """Neurons that this layer reads: the columns of its weights."""
        return int(self.weights.shape[1])

    @property
    def edges(self) -> int:
        """Nonzero weights."""
        return int(self.weights.nnz)

    @property
    def keeps_dead(self) -> bool:
        """Whether a sample that is zero everywhere is so after this layer too."""
        return self.bias_on == "nonzero" or not np.any(self.bias)


@dataclass(frozen=True, eq=False)
class Model:
    """A feed-forward network: layers applied in order.

    Parameters
    ----------
    layers
        At least one `Layer`; each reads as many neurons as the one before computes.
    name
        What to call it in messages and reports. Not part of the digest.

    Raises
    ------
    SettingsError
        When there is no layer, or two neighbours do not chain.
    """

    layers: tuple[Layer, ...]
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise SettingsError(f"model {self.name!r} has no layers: give at least one")
        for number in range(1, len(self.layers)):
            before, after = self.layers[number - 1], self.layers[number]
            if before.outputs != after.inputs:
                raise SettingsError(
                    f"model {self.name!r}: layer {number} computes {before.outputs} neurons but "
                    f"layer {number + 1} reads {after.inputs}; make the two sizes equal"
                )

    @property
    def inputs(self) -> int:
        """Values that one sample has on the way in."""
        return self.layers[0].inputs

    @property
    def outputs(self) -> int:
        """Values that one sample has on the way out."""
        return self.layers[-1].outputs

    @property
    def edges(self) -> int:
        """Nonzero weights of all layers."""
        return sum(layer.edges for layer in self.layers)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.layers)

    def digest(self) -> str:
        """Return a SHA-256, in hexadecimal, of everything that the answers depend on.

        The same on every machine and run; equal for models that differ in name only.
        """
        total = hashlib.sha256()
        for layer in self.layers:
            rules = (
                layer.weights.shape,
                layer.bias_on,
                layer.relu,
                layer.clamp,
                np.shape(layer.bias),
            )
            total.update(repr(rules).encode())
            total.update(np.asarray(layer.bias, dtype="<f8").tobytes())
            total.update(np.asarray(layer.weights.indptr, dtype="<i4").tobytes())
            total.update(np.asarray(layer.weights.indices, dtype="<i4").tobytes())
            total.update(np.asarray(layer.weights.data, dtype="<f4").tobytes())
        return total.hexdigest()


def _canonical(weights: Any) -> csr_array:
    """Give weights the one form that `Layer` promises; copy only what has to change."""
    if not issparse(weights):
        weights = _checked_dense(weights)
    if weights.ndim != 2 or 0 in weights.shape:
        raise SettingsError(
            f"weights have shape {tuple(map(int, weights.shape))}: they must be "
            "two-dimensional, (outputs, inputs), with at least one of each"
        )
    if weights.dtype.kind not in "biuf":
        raise SettingsError(f"weights are of dtype {weights.dtype}: use real numbers")
    with np.errstate(over="ignore"):  # an overflow becomes inf, which is refused just below
        result = csr_array(weights, dtype=np.float32)
    if not result.has_canonical_format:
        result = result.copy()
        result.sum_duplicates()
    if not np.isfinite(result.data).all():
        raise SettingsError(
            "weights must be finite in float32: remove nan, inf and values over 3.4e38"
        )
    if not result.data.all():
        result = result.copy()
        result.eliminate_zeros()
    if result.indices.dtype != np.int32 or result.indptr.dtype != np.int32:
        if result.nnz >= 2**31:
            raise SettingsError(
                f"a layer of {result.nnz} weights: at most {2**31 - 1} fit; split it"
            )
        arrays = result.data, result.indices.astype(np.int32), result.indptr.astype(np.int32)
        result = csr_array(arrays, shape=result.shape)
    return result


def _checked_dense(weights: Any) -> NDArray[Any]:
    try:
        dense = np.asarray(weights)
    except ValueError as error:
        raise SettingsError(f"weights are not a rectangular array: {error}") from error
    if dense.dtype.kind not in "biuf":
        raise SettingsError(f"weights are of dtype {dense.dtype}: use real numbers")
    return dense


def _checked_bias(bias: Any, outputs: int) -> float | NDArray[np.float64]:
    try:
        values = np.array(bias, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"bias is {bias!r}: give a number, or one a neuron") from error
    if not np.isfinite(values).all():
        raise SettingsError("bias must be finite")
    if values.ndim == 0:
        return float(values)
    if values.shape != (outputs,):
        raise SettingsError(
            f"bias has shape {values.shape} in a layer of {outputs} outputs: "
            f"give one number, or shape ({outputs},)"
        )
    return values


def _checked_clamp(clamp: Any) -> float:
    try:
        value = float(clamp)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"clamp is {clamp!r}: give a positive number, or None") from error
    if not (math.isfinite(value) and value > 0):
        raise SettingsError(f"clamp is {value}: give a positive number, or None for no clamp")
    return value

"""UNet++: nested U-Nets whose nodes x[i, j] share one encoder.

Level i counts down (each level halves the resolution), column j counts across.
x[i, 0] is the encoder; x[i, j], j >= 1, sees x[i, 0..j-1] and the upsampled
x[i+1, j-1]. Every x[0, j], j >= 1, carries a head.

Glossary of shapes: B batch, H height, W width, L heads, T targets.

References:
  Zhou et al., UNet++, 2018 (arXiv:1807.10165); block order (convolution, ReLU, batch
  normalisation), initialisers and constants as in the Keras notebook re-created here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from nucseg_jax.network.convolution import Conv1x1, Conv3x3, Upsample, max_pool

Array = jax.Array
Variables = Mapping[str, Any]

BATCH_NORM_EPSILON = 1e-3  # Keras's; Flax's own default is 1e-5.


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["top", "left"],
    meta_fields=["height", "width"],
)
@dataclasses.dataclass(frozen=True)
class Interior:
    """The part of an image that is wanted; what lies around it is only looked at.

    All are pixels, and multiples of 2^(depth - 1). Programs are compiled for a size,
    whatever the place.

    Attributes:
      top: First row, int32 [].
      left: First column, int32 [].
      height: Rows.
      width: Columns.
    """

    top: Array | int
    left: Array | int
    height: int
    width: int

    def cut(self, image: Array, level: int = 0) -> Array:
        """Cuts the part out of what a level has of the whole, [B, H, W, C]."""
        first = [jnp.asarray(n) >> level for n in (0, self.top, self.left, 0)]
        batch, _, _, channels = image.shape
        size = (batch, self.height >> level, self.width >> level, channels)
        return lax.dynamic_slice(image, first, size)


class BatchNorm(nn.BatchNorm):
    """Batch normalisation, which in inference is affine."""

    def affine(self) -> tuple[Array, Array]:
        """Scale and shift of each feature by the running statistics, float32 [F]."""
        mean, variance = (
            self.get_variable("batch_stats", name) for name in ("mean", "var")
        )
        scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
        factor = scale * lax.rsqrt(variance + self.epsilon)
        return factor, bias - mean * factor


class Block(nn.Module):
    """`num_convs` times: 3x3 convolution, ReLU, batch normalisation."""

    features: int
    num_convs: int
    dtype: Any
    batch_norm_momentum: float

    @nn.compact
    def __call__(self, inputs: Sequence[Array], *, train: bool) -> Array:
        for k in range(self.num_convs):
            convolution = Conv3x3(self.features, dtype=self.dtype, name=f"Conv_{k}")
            normalization = BatchNorm(
                use_running_average=not train,
                momentum=self.batch_norm_momentum,
                epsilon=BATCH_NORM_EPSILON,
                dtype=self.dtype,
            )
            if train or self.is_initializing():
                inputs = [normalization(nn.relu(convolution(inputs)))]
            else:
                inputs = [convolution(inputs, *normalization.affine())]
        return inputs[0]


class UNetPlusPlus(nn.Module):
    """Maps images float [B, H, W, 3] to head logits float32 [L, B, H, W, T].

    H and W must be multiples of 2^(depth - 1), depth being the number of features.
    Of an interior alone, the encoder still sees the whole image, but the decoder, most
    of the work, computes no more than the interior, with zeros around it.

    Attributes:
      features: Channels of each level, from full resolution down.
      num_targets: T, channels of each head.
      dtype: Of the computation; parameters, statistics and logits stay float32.
      batch_norm_momentum: Of the running statistics.
      heads: Columns j that carry a head; None = all, 1..depth-1. Only the nodes that
        these heads need are computed and have parameters.
    """

    features: Sequence[int] = (64, 128, 256, 512, 1024)
    num_targets: int = 1
    dtype: Any = jnp.float32
    batch_norm_momentum: float = 0.99
    heads: Sequence[int] | None = None

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.features)

    @nn.compact
    def __call__(
        self, image: Array, train: bool = False, interior: Interior | None = None
    ) -> Array:
        check_image(image, self.depth)
        heads = tuple(self.heads or range(1, self.depth))
        x: dict[tuple[int, int], Array] = {}
        encoded = image
        for i in range(max(heads) + 1):
            below = max_pool(encoded) if i else image
            encoded = self._node(i, 0)([below], train=train)
            x[i, 0] = encoded if interior is None else interior.cut(encoded, level=i)
        for j in range(1, max(heads) + 1):
            for i in range(max(heads) + 1 - j):
                skips = [x[i, k] for k in range(j)]
                up = self._upsample(i, j)(x[i + 1, j - 1])
                x[i, j] = self._node(i, j)([*skips, up], train=train)
        return jnp.stack([self._head(j)(x[0, j]) for j in heads])

    def _node(self, i: int, j: int) -> nn.Module:
        return Block(
            self.features[i],
            num_convs=2 if j == 0 else 1,
            dtype=self.dtype,
            batch_norm_momentum=self.batch_norm_momentum,
            name=f"x_{i}_{j}",
        )

    def _upsample(self, i: int, j: int) -> nn.Module:
        return Upsample(self.features[i], dtype=self.dtype, name=f"up_{i}_{j}")

    def _head(self, j: int) -> nn.Module:
        # float32: the loss takes logarithms of what comes out.
        return Conv1x1(self.num_targets, dtype=jnp.float32, name=f"head_{j}")


def infer(
    model: UNetPlusPlus,
    variables: Variables,
    image: Array,
    interior: Interior | None = None,
) -> Array:
    """Returns head logits [L, B, H, W, T], normalised by the running statistics."""
    logits = model.apply(variables, image, train=False, interior=interior)
    return cast(Array, logits)


def combine_heads(head_logits: Array) -> Array:
    """Returns the logits of the mean of the heads' probabilities.

    They stay exact where a probability is within rounding of 0 or 1: both it and its
    complement are sums of terms relative to about the largest, so that none is lost.

    Args:
      head_logits: float32 [L, B, H, W, T].

    Returns:
      float32 [B, H, W, T]; its sigmoid is the mean of the heads' sigmoids.
    """
    # Head by head: XLA's CPU sums over a leading axis take ten times as long.
    heads = list(head_logits)
    if len(heads) == 1:
        return heads[0]
    top, low = (
        functools.reduce(jnp.maximum, heads),
        functools.reduce(jnp.minimum, heads),
    )
    # What the sums are relative to: where all heads say no, sigmoid(top) is exp(top).
    top = lax.stop_gradient(jnp.minimum(top, 0))
    low = lax.stop_gradient(jnp.maximum(low, 0))
    probs = sum(_relative_sigmoid(logits, top) for logits in heads)
    complements = sum(_relative_sigmoid(-logits, -low) for logits in heads)
    return top + low + jnp.log(probs) - jnp.log(complements)


def _relative_sigmoid(logits: Array, scale: Array) -> Array:
    """sigmoid(logits) / exp(scale), where scale is at most 0 and not far below."""
    # Beyond the bound, a term adds nothing to the largest one.
    return 1 / (jnp.exp(jnp.minimum(scale - logits, 80)) + jnp.exp(scale))


def average_heads(head_logits: Array) -> Array:
    """Returns the mean of the heads' probabilities.

    Args:
      head_logits: float32 [L, B, H, W, T].

    Returns:
      float32 [B, H, W, T] in [0, 1].
    """
    # Head by head, as above.
    probs = map(jax.nn.sigmoid, head_logits)
    return functools.reduce(jnp.add, probs) / len(head_logits)


def prune(
    model: UNetPlusPlus, variables: Variables, head: int
) -> tuple[UNetPlusPlus, dict[str, Any]]:
    """Cuts the network down to what one head needs.

    Args:
      model: The full network.
      variables: Its "params" and "batch_stats".
      head: Column j of the head to keep, 1 to depth - 1.

    Returns:
      A network that computes head `head` alone, and the variables that it needs.

    Raises:
      ValueError: If the network has no such head.
    """
    if head not in range(1, model.depth):
        raise ValueError(f"head is {head}; the network has 1 to {model.depth - 1}")
    kept = {f"head_{head}"} | {
        f"{kind}_{i}_{j}"
        for kind in ("x", "up")
        for i in range(head + 1)
        for j in range(head + 1 - i)
    }
    pruned = {
        collection: {name: leaf for name, leaf in modules.items() if name in kept}
        for collection, modules in variables.items()
    }
    return model.clone(
        features=tuple(model.features[: head + 1]), heads=(head,)
    ), pruned


def select_targets(
    variables: Variables, old: Sequence[str], new: Sequence[str]
) -> dict[str, Any]:
    """Keeps the channels of the heads that predict some of their targets.

    Args:
      variables: Of the network whose heads predict `old`.
      old: Names of its targets.
      new: Names to keep, all of them among `old`.

    Returns:
      Variables of the same network with heads for `new`.
    """
    channels = jnp.array([old.index(name) for name in new])
    params = {
        name: jax.tree.map(lambda leaf: leaf[..., channels], module)
        if name.startswith("head_")
        else module
        for name, module in variables["params"].items()
    }
    return {**variables, "params": params}


def check_image(image: Array, depth: int) -> None:
    """Raises ValueError unless `image` is [B, H, W, 3] with H and W divisible."""
    multiple = 2 ** (depth - 1)
    if image.ndim != 4 or image.shape[-1] != 3:
        raise ValueError(f"image is {image.shape}; expected [B, H, W, 3]")
    if image.shape[1] % multiple or image.shape[2] % multiple:
        raise ValueError(
            f"image is {image.shape}; height and width must be multiples of {multiple}"
        )

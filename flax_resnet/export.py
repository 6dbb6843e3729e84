"""Trained networks in files that need none of this package to run."""

from collections.abc import Callable
import contextlib
import dataclasses
from typing import Any

import jax
from jax import export
import jax.numpy as jnp

from flax_resnet import litert, onnx_graph
from flax_resnet.models import fold_batch_norm
from flax_resnet.models.variables import unstack
from flax_resnet.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
  predictor: Predictor, *, pixels: bool, nchw: bool = False
) -> bytes:
  """Returns a program of `jax.export` with the weights inside.

  Args:
    predictor: the network.
    pixels: whether the program takes uint8 [b, h, w, c] and normalizes it, in
      place of normalized float32 [b, h, w, c].
    nchw: whether the program takes [b, c, h, w]; default False.

  Returns:
    For `jax.export.deserialize(...).call(images)`: logits float32 [b, n], for
    any b, on CPU, NVIDIA GPU and TPU; for JAX at most six months newer or three
    weeks older than this one.
  """
  logits, images = _program(predictor, pixels, nchw)
  exported = export.export(jax.jit(logits), platforms=PLATFORMS)(images)
  return bytes(exported.serialize())


def to_onnx(predictor: Predictor, *, pixels: bool, nchw: bool = False) -> bytes:
  """Returns an ONNX model with the weights inside, which computes in float32.

  Args:
    predictor: the network.
    pixels: as in `to_stablehlo`.
    nchw: as in `to_stablehlo`.

  Returns:
    From "images" [b, h, w, c] to "logits" float32 [b, n], for any b.

  Raises:
    ImportError: without onnx.
    ValueError: for a network of operations that are not written as ONNX:
      GroupNorm, EvoNorm, filter response norm, standardized kernels, split
      attention.
  """
  plain = _in_float32(predictor)
  try:
    model = onnx_graph.to_onnx(*_program(plain, pixels, nchw))
  except ValueError as error:
    raise ValueError(
      f"the network cannot be written as ONNX, {error}: write StableHLO, to an "
      "OUT that does not end in .onnx"
    ) from error
  return model.SerializeToString()


def to_litert(
  predictor: Predictor, *, pixels: bool, weights: litert.Weights = "float32"
) -> bytes:
  """Returns a LiteRT model with the weights inside.

  BatchNorm is folded into the convolutions where the network allows it.

  Args:
    predictor: the network.
    pixels: as in `to_stablehlo`.
    weights: type that the weights are stored in, as in `litert.to_litert`.

  Returns:
    From "images" [1, h, w, c], of a batch that can be resized, to "logits"
    float32 [1, n].

  Raises:
    ImportError: without litert-converter.
    ValueError: for a network that has no such form.
  """
  plain = _in_float32(predictor)
  with contextlib.suppress(ValueError):
    model, variables = fold_batch_norm(plain.model, plain.variables)
    plain = dataclasses.replace(plain, model=model, variables=variables)
  logits, images = _program(plain, pixels, nchw=False)
  one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
  try:
    return litert.to_litert(logits, one, weights)
  except ValueError as error:
    raise ValueError(
      f"the network cannot be written as LiteRT, {error}: write ONNX"
    ) from error


def _in_float32(predictor: Predictor) -> Predictor:
  """Returns a network of the same outputs that needs the fewest operators."""
  # And few runtimes convolve bfloat16.
  plain = predictor.model.clone(
    scan=False, remat=False, space_to_depth=False, dtype=jnp.float32
  )
  variables = predictor.variables
  if predictor.model.scan:
    variables = unstack(variables)
  return dataclasses.replace(predictor, model=plain, variables=variables)


def _program(
  predictor: Predictor, pixels: bool, nchw: bool
) -> tuple[Callable[[Any], Any], jax.ShapeDtypeStruct]:
  """Returns the logits as a function of images, and shape and dtype of them."""

  def logits(images):
    if nchw:
      images = images.transpose(0, 2, 3, 1)
    if pixels:
      return predictor.logits(predictor.variables, images)
    return predictor.model.apply(predictor.variables, images, train=False)

  (height, width), channels = predictor.preprocessing.shape, predictor.channels
  shape = (
    f"b, {channels}, {height}, {width}"
    if nchw
    else f"b, {height}, {width}, {channels}"
  )
  dtype = jnp.uint8 if pixels else jnp.float32
  return logits, jax.ShapeDtypeStruct(export.symbolic_shape(shape), dtype)

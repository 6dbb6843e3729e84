"""Trained networks in files that need none of this package to run."""

from collections.abc import Callable
import contextlib
import io
import logging
import types
from typing import Any

from etils import epy
import jax
from jax import export
import numpy as np

from flax_resnet.predictor import Predictor

with epy.lazy_imports():  # An extra, and slow to import.
  import jax2onnx  # pyright: ignore[reportMissingImports] - an extra

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(predictor: Predictor, *, pixels: bool) -> bytes:
  """Returns a program of `jax.export` with the weights inside.

  Args:
    predictor: the network.
    pixels: whether the program takes uint8 [b, h, w, c] and normalizes it, in
      place of normalized float32 [b, h, w, c].

  Returns:
    For `jax.export.deserialize(...).call(images)`: logits float32 [b, n], for
    any b, on CPU, NVIDIA GPU and TPU.
  """
  logits, shape, dtype = _program(predictor, pixels)
  symbolic = export.symbolic_shape(", ".join(map(str, shape)))
  exported = export.export(jax.jit(logits), platforms=PLATFORMS)(
    jax.ShapeDtypeStruct(symbolic, dtype)
  )
  return bytes(exported.serialize())


def to_onnx(predictor: Predictor, *, pixels: bool) -> bytes:
  """Returns an ONNX model with the weights inside, made by jax2onnx.

  Args:
    predictor: the network.
    pixels: as in `to_stablehlo`.

  Returns:
    From "images" [b, h, w, c] to "logits" float32 [b, n], for any b.

  Raises:
    ImportError: without jax2onnx.
  """
  logits, shape, dtype = _program(predictor, pixels)
  images: Any = types.SimpleNamespace(shape=shape, dtype=dtype)
  # It logs the plugins that it cannot load, and prints what it converts.
  logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)
  with contextlib.redirect_stdout(io.StringIO()):
    model: Any = jax2onnx.to_onnx(
      logits,
      inputs=[images],
      model_name="flax_resnet",
      input_names=["images"],
      output_names=["logits"],
    )
  return model.SerializeToString()


def _program(
  predictor: Predictor, pixels: bool
) -> tuple[Callable[[Any], Any], tuple[str | int, ...], np.dtype]:
  """Returns the logits as a function of images, with their shape and dtype."""

  def logits(images):
    if pixels:
      return predictor.logits(predictor.variables, images)
    return predictor.model.apply(predictor.variables, images, train=False)

  size = predictor.preprocessing.image_size
  dtype = np.dtype("uint8" if pixels else "float32")
  return logits, ("b", size, size, predictor.channels), dtype

"""Trained networks in files that need none of this package to run."""

import contextlib
import io
import logging
import types
from typing import Any, cast

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from flax_resnet.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(predictor: Predictor, *, pixels: bool) -> bytes:
  """Returns a program of `jax.export` with the weights inside.

  Args:
    predictor: The network.
    pixels: Take uint8 [b, h, w, c] and normalise it inside; otherwise take
      normalised float32 [b, h, w, c].

  Returns:
    For `jax.export.deserialize(...).call(images)`: logits float32 [b, n], for
    any b, on CPU, NVIDIA GPU and TPU.
  """
  shape = export.symbolic_shape(
    ", ".join(map(str, ("b", *_image_shape(predictor))))
  )
  images = jax.ShapeDtypeStruct(shape, jnp.uint8 if pixels else jnp.float32)
  logits = jax.jit(_logits(predictor, pixels))
  return bytes(export.export(logits, platforms=PLATFORMS)(images).serialize())


def to_onnx(predictor: Predictor, *, pixels: bool) -> bytes:
  """Returns an ONNX model with the weights inside, made by jax2onnx.

  Args:
    predictor: The network.
    pixels: As in `to_stablehlo`.

  Returns:
    From "images" [b, h, w, c] to "logits" float32 [b, n], for any b.

  Raises:
    ImportError: Without jax2onnx.
  """
  # It tells of the plugins that it cannot load, and prints what it meets.
  logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)
  with contextlib.redirect_stdout(io.StringIO()):
    import jax2onnx  # pyright: ignore[reportMissingImports] - an extra

    images: Any = types.SimpleNamespace(
      shape=("b", *_image_shape(predictor)),
      dtype=np.dtype("uint8" if pixels else "float32"),
    )
    model = jax2onnx.to_onnx(
      _logits(predictor, pixels),
      inputs=[images],
      model_name="flax_resnet",
      input_names=["images"],
      output_names=["logits"],
    )
  return cast(Any, model).SerializeToString()


def _logits(predictor: Predictor, pixels: bool):
  if pixels:
    return lambda images: predictor.logits(predictor.variables, images)
  return lambda images: predictor.model.apply(
    predictor.variables, images, train=False
  )


def _image_shape(predictor: Predictor) -> tuple[int, int, int]:
  size = predictor.preprocessing.image_size
  return size, size, predictor.channels

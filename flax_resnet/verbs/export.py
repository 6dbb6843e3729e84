"""Export a trained network as one file: StableHLO, or ONNX.

OUT has the weights inside and leaves the batch size open. It takes normalised
images float32 [b, h, w, c], or with --pixels uint8 [b, h, w, c] as they come
out of the resize, and gives logits. An OUT that ends in .onnx is ONNX (needs
pip install 'flax_resnet[onnx]'); any other is StableHLO for CPU, NVIDIA GPU and
TPU, which runs where only jax and flatbuffers are installed:

    from jax import export
    network = export.deserialize(bytearray(open("OUT", "rb").read()))
    logits = network.call(images)
"""

import argparse
import pathlib

from flax_resnet.training.schema import InputError
from flax_resnet.verbs import network


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("target", metavar="OUT", type=pathlib.Path)
  network.add_arguments(parser)
  parser.add_argument(
    "--pixels", action="store_true", help="take uint8 and normalise inside"
  )
  parser.add_argument(
    "--fold", action="store_true", help="fold BatchNorm into the convolutions"
  )


def run(flags: argparse.Namespace, overrides: list[str]) -> None:
  """Writes OUT and says what it takes."""
  del overrides
  import dataclasses
  import importlib.util

  from flax_resnet import serialization
  from flax_resnet.models import fold_batch_norm
  from flax_resnet.training.schema import wrong_input

  as_onnx = flags.target.suffix == ".onnx"
  if as_onnx and importlib.util.find_spec("jax2onnx") is None:
    raise InputError(
      "ONNX is written by jax2onnx, which is not installed: "
      "pip install 'flax_resnet[onnx]', or choose an OUT without .onnx"
    )

  if flags.target.exists():
    raise InputError(f"{flags.target} is there already: choose another OUT")
  if not flags.target.absolute().parent.is_dir():
    raise InputError(f"{flags.target.parent} is not a folder: make it first")
  predictor = network.predictor_of(flags)
  if flags.fold:
    with wrong_input("--fold"):
      model, variables = fold_batch_norm(predictor.model, predictor.variables)
    predictor = dataclasses.replace(predictor, model=model, variables=variables)
  write = serialization.to_onnx if as_onnx else serialization.to_stablehlo
  data = write(predictor, pixels=flags.pixels)
  partial = flags.target.with_name(flags.target.name + ".partial")
  partial.write_bytes(data)
  partial.replace(flags.target)
  size = predictor.preprocessing.image_size
  print(
    f"{flags.target}: {len(data) / 1e6:.1f} MB, takes "
    f"{'uint8' if flags.pixels else 'float32'} "
    f"[b, {size}, {size}, {predictor.channels}], gives logits float32 "
    f"[b, {predictor.model.num_classes}]"
  )

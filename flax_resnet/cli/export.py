"""Export a trained network as one file: StableHLO, or ONNX.

OUT has the weights inside and leaves the batch size open. It takes normalized
images float32 [b, h, w, c], or with --pixels uint8 [b, h, w, c] as they come
out of the resize, and gives logits. An OUT that ends in .onnx is ONNX (needs
pip install 'flax_resnet[onnx]'); any other is StableHLO for CPU, NVIDIA GPU and
TPU, which runs where only jax and flatbuffers are installed:

    from jax import export
    network = export.deserialize(bytearray(open("OUT", "rb").read()))
    logits = network.call(images)
"""

import argparse
import dataclasses
import importlib.util

from etils import epy

from flax_resnet import storage
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  from flax_resnet import export, models


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("target", metavar="OUT", type=flags.path)
  flags.add_network_arguments(parser)
  parser.add_argument(
    "--pixels", action="store_true", help="take uint8 and normalize inside"
  )
  parser.add_argument(
    "--fold", action="store_true", help="fold BatchNorm into the convolutions"
  )


def run(args: argparse.Namespace) -> None:
  """Writes OUT and prints what it takes."""
  as_onnx = args.target.suffix == ".onnx"
  if as_onnx and importlib.util.find_spec("jax2onnx") is None:
    raise InputError(
      "ONNX is written by jax2onnx, which is not installed: "
      "pip install 'flax_resnet[onnx]', or choose an OUT without .onnx"
    )
  flags.check_is_new(args.target)
  predictor = flags.load_predictor(args)
  if args.fold:
    with reported_as("--fold"):
      model, variables = models.fold_batch_norm(
        predictor.model, predictor.variables
      )
    predictor = dataclasses.replace(predictor, model=model, variables=variables)
  serialize = export.to_onnx if as_onnx else export.to_stablehlo
  data = serialize(predictor, pixels=args.pixels)
  with storage.replacing(args.target) as partial:
    partial.write_bytes(data)
  size = predictor.preprocessing.image_size
  print(
    f"{args.target}: {len(data) / 1e6:.1f} MB, takes "
    f"{'uint8' if args.pixels else 'float32'} "
    f"[b, {size}, {size}, {predictor.channels}], gives logits float32 "
    f"[b, {predictor.model.num_classes}]"
  )

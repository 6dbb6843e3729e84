"""Export a trained network as one file: ONNX, LiteRT, or StableHLO.

OUT has the weights inside and leaves the batch size open. It takes normalized
images float32 [b, h, w, c], or with --pixels uint8 [b, h, w, c] as they come
out of the resize, and gives logits.

An OUT that ends in .onnx is ONNX (needs pip install 'flax_resnet[onnx]'). One
that ends in .tflite is LiteRT (needs 'flax_resnet[litert]'), for phones: it
takes one image, or as many as an interpreter is told by resize_tensor_input,
and its weights are stored as --precision says. Any other is StableHLO for CPU,
NVIDIA GPU and TPU, which runs where only jax and flatbuffers are installed:

    from jax import export
    network = export.deserialize(bytearray(open("OUT", "rb").read()))
    logits = network.call(images)

JAX reads StableHLO when it is at most six months newer or three weeks older
than the JAX that wrote it. ONNX is what lasts; or keep the workdir, and export
again. Endings of other formats (.pt, .h5, ...) are refused.
"""

import argparse
import dataclasses
import importlib.util

from etils import epy

from flax_resnet import storage
from flax_resnet.cli import flags
from flax_resnet.errors import InputError, reported_as

with epy.lazy_imports():
  import jax

  from flax_resnet import export, models


_PRECISIONS = ("float32", "float16", "int8")
# Packages of the formats, by ending, and the extras that install them.
_NEEDED = {
  ".onnx": {"onnx": "onnx"},
  ".tflite": {"litert_converter": "litert", "ai_edge_quantizer": "litert"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("target", metavar="OUT", type=flags.path)
  flags.add_network_arguments(parser)
  parser.add_argument(
    "--pixels", action="store_true", help="take uint8 and normalize inside"
  )
  parser.add_argument(
    "--nchw", action="store_true", help="take [b, c, h, w], as PyTorch does"
  )
  parser.add_argument(
    "--fold", action="store_true", help="fold BatchNorm into the convolutions"
  )
  parser.add_argument(
    "--precision",
    choices=_PRECISIONS,
    default="float32",
    help="of the weights in a .tflite: %(choices)s; float32 by default",
  )


def run(args: argparse.Namespace) -> None:
  """Writes OUT and prints what it takes."""
  flags.check_ending(
    args.target,
    (".onnx", ".tflite", ".stablehlo"),
    "export writes ONNX, LiteRT or StableHLO",
  )
  ending = args.target.suffix.lower()
  as_litert = ending == ".tflite"
  if as_litert and args.nchw:
    raise InputError("--nchw: a .tflite takes [b, h, w, c]: leave it out")
  if args.precision != "float32" and not as_litert:
    raise InputError(f"--precision {args.precision} is that of a .tflite OUT")
  for package, extra in _NEEDED.get(ending, {}).items():
    if importlib.util.find_spec(package) is None:
      raise InputError(
        f"the package {package} is not installed: pip install "
        f"'flax_resnet[{extra}]', or choose an OUT without {ending}"
      )
  flags.check_is_new(args.target)
  predictor = flags.load_predictor(args)
  if args.fold:
    with reported_as("--fold"):
      model, variables = models.fold_batch_norm(
        predictor.model, predictor.variables
      )
    predictor = dataclasses.replace(predictor, model=model, variables=variables)
  with reported_as("export"):
    if as_litert:
      data = export.to_litert(
        predictor, pixels=args.pixels, weights=args.precision
      )
    elif ending == ".onnx":
      data = export.to_onnx(predictor, pixels=args.pixels, nchw=args.nchw)
    else:
      data = export.to_stablehlo(predictor, pixels=args.pixels, nchw=args.nchw)
  with storage.replacing(args.target) as partial:
    partial.write_bytes(data)
  batch = 1 if as_litert else "b"
  shape = [batch, *predictor.preprocessing.shape, predictor.channels]
  if args.nchw:
    shape.insert(1, shape.pop())
  print(
    f"{args.target}: {len(data) / 1e6:.1f} MB, takes "
    f"{'uint8' if args.pixels else 'float32'} [{', '.join(map(str, shape))}], "
    f"gives logits float32 [b, {predictor.model.num_classes}]"
  )
  if ending not in _NEEDED:
    print(
      "JAX reads it that is at most six months newer or three weeks older than "
      f"{jax.__version__}: export again for any other"
    )

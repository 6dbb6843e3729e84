"""The digits network as LiteRT: size, accuracy and time by type of its weights.

    pip install -e '.[litert]' ai-edge-litert
    python benchmarks/litert.py

Top-1 on the 360 test digits, and the median of 200 calls with one image, on one
thread.
"""

import statistics
import time

from ai_edge_litert.interpreter import Interpreter
import jax
import numpy as np

from flax_resnet import sharding
from flax_resnet.export import to_litert
from flax_resnet.predictor import Predictor
from flax_resnet.training import load_recipe
from flax_resnet.training.setup import set_up
from flax_resnet.weights import load_pretrained


def run(model: bytes, images: np.ndarray) -> tuple[np.ndarray, float]:
  """Returns the logits of images, and milliseconds of one image."""
  interpreter = Interpreter(model_content=model, num_threads=1)
  (image,), (logits,) = (
    interpreter.get_input_details(),
    interpreter.get_output_details(),
  )

  def call(batch: np.ndarray) -> float:
    interpreter.set_tensor(image["index"], batch)
    start = time.perf_counter()
    interpreter.invoke()
    return 1000 * (time.perf_counter() - start)

  interpreter.allocate_tensors()
  times = [call(images[n : n + 1]) for n in range(200)]
  interpreter.resize_tensor_input(image["index"], images.shape)
  interpreter.allocate_tensors()
  call(images)
  return interpreter.get_tensor(logits["index"]), statistics.median(times)


def main() -> None:
  mesh = sharding.make_mesh(jax.devices()[:1])
  split = set_up(load_recipe("digits").to_dict(), mesh).dataset.eval
  batch = next(split.eval_batches(batch_size=len(split)))
  digits = Predictor.of(load_pretrained("cifar_resnet8.digits"))
  print("| weights | MB | top-1 | ms an image |\n|---|--:|--:|--:|")
  for weights in ("float32", "float16", "int8"):
    model = to_litert(digits, pixels=True, weights=weights)
    logits, milliseconds = run(model, batch["image"])
    top1 = (logits.argmax(-1) == batch["label"]).mean()
    size = len(model) / 1e6
    print(f"| {weights} | {size:.2f} | {top1:.2%} | {milliseconds:.3f} |")


if __name__ == "__main__":
  main()

"""A feature pyramid and a segmentation head on the features of a ResNet.

The backbone keeps strides of 8 (`output_stride=8`: beyond that strides become
dilations, as in Chen et al. 2017, arXiv:1706.05587); the pyramid adds its deep
maps to the finer ones (Lin et al. 2016, arXiv:1612.03144). It learns to tell
squares, discs and triangles of random colours on noise from each other:

    python examples/segmentation.py

Measured: mean IoU 0.78 (background 0.98, square 0.68, disc 0.75, triangle 0.73)
after 1,000 steps, a minute on 2 CPU cores; one seed.
"""

import argparse
import pathlib
import time

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from matplotlib.figure import Figure
import numpy as np
import optax

import flax_resnet as fr

CLASSES = ("background", "square", "disc", "triangle")
SIZE = 64  # Pixels.


class PyramidSegmenter(nn.Module):
  """Logits for every pixel.

  Attributes:
    backbone: A ResNet; of its features those from stage 1 on are used.
    num_classes: Of the pixels.
    width: Channels of the pyramid.
  """

  backbone: fr.ResNet
  num_classes: int
  width: int = 64

  @nn.compact
  def __call__(
    self, images: Float[Array, "b h w c"], *, train: bool
  ) -> Float[Array, "b h w n"]:
    maps = self.backbone.features(images, train=train)
    stages = sorted(name for name in maps if name != "stem")
    merged = None
    for stage in reversed(stages):  # From the deepest to the finest.
      lateral = nn.Conv(self.width, (1, 1), name=f"{stage}_lateral")
      x = lateral(maps[stage])
      if merged is not None:
        x += jax.image.resize(merged, x.shape, "bilinear")
      merged = x
    merged = nn.relu(nn.Conv(self.width, (3, 3), name="smooth")(merged))
    logits = nn.Conv(self.num_classes, (1, 1), name="head")(merged)
    whole = (*images.shape[:3], self.num_classes)
    return jax.image.resize(logits, whole, "bilinear")


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Returns an image [64, 64, 3] about 0 and the class of each pixel."""
  image = np.zeros((SIZE, SIZE, 3), np.float32)
  labels = np.zeros((SIZE, SIZE), np.int32)
  for _ in range(3):
    kind = rng.integers(1, len(CLASSES))
    radius = rng.uniform(7, 13)
    row, column = rng.uniform(radius, SIZE - radius, 2)
    y, x = np.mgrid[:SIZE, :SIZE] - np.array([row, column]).reshape(2, 1, 1)
    inside = {
      1: np.maximum(abs(x), abs(y)) < 0.85 * radius,
      2: np.hypot(x, y) < radius,
      3: (y < 0.8 * radius) & (2 * abs(x) < y + radius),
    }[kind]
    image[inside] = rng.uniform(-1.5, 1.5, 3)
    labels[inside] = kind
  image += rng.normal(0, 0.5, image.shape)
  return image, labels


def draw_scenes(
  count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [count, 64, 64, 3] and labels [count, 64, 64]."""
  images, labels = zip(*(draw_scene(rng) for _ in range(count)), strict=True)
  return np.stack(images), np.stack(labels)


def mean_iou(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the intersection over union of each class."""
  found = []
  for kind in range(len(CLASSES)):
    one, other = predicted == kind, labels == kind
    found.append((one & other).sum() / max(1, (one | other).sum()))
  return np.array(found)


def main() -> None:
  """Trains, prints the IoU on scenes that were not trained on, and draws."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=1000)
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("segmentation.png")
  )
  flags = parser.parse_args()

  # A ResNet-18 of a quarter of the channels. Of a pretrained one:
  # backbone, variables = fr.from_pretrained(…, num_classes=0, output_stride=8)
  backbone = fr.create_model(
    "resnet18",
    num_classes=0,
    stage_features=(16, 32, 64, 128),
    output_stride=8,
  )
  model = PyramidSegmenter(backbone, len(CLASSES))
  rng = np.random.default_rng(flags.seed)
  empty = jnp.zeros((1, SIZE, SIZE, 3))
  variables = model.init(jax.random.key(flags.seed), empty, train=False)
  schedule = optax.cosine_onecycle_schedule(flags.steps, 3e-3, 0.2)
  optimizer = optax.adamw(schedule)

  def loss_fn(params, batch_stats, images, labels):
    logits, updates = model.apply(
      {"params": params, "batch_stats": batch_stats},
      images,
      train=True,
      mutable=["batch_stats"],
    )
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return each.mean(), updates["batch_stats"]

  def step(params, batch_stats, moments, images, labels):
    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      params, batch_stats, images, labels
    )
    updates, moments = optimizer.update(gradients, moments, params)
    return optax.apply_updates(params, updates), batch_stats, moments, loss

  step = jax.jit(step, donate_argnums=(0, 1, 2))
  params, batch_stats = variables["params"], variables["batch_stats"]
  moments = optimizer.init(params)
  start = time.perf_counter()
  for number in range(1, flags.steps + 1):
    scenes = draw_scenes(flags.batch_size, rng)
    params, batch_stats, moments, loss = step(
      params, batch_stats, moments, *scenes
    )
    if number % 100 == 0:
      passed = time.perf_counter() - start
      print(f"step {number:4}  loss {loss:.4f}  {passed:.0f} s")

  images, labels = draw_scenes(64, rng)
  variables = {"params": params, "batch_stats": batch_stats}
  logits = jax.jit(lambda x: model.apply(variables, x, train=False))(images)
  predicted = np.asarray(logits.argmax(-1))
  found = mean_iou(predicted, labels)
  for name, value in zip(CLASSES, found, strict=True):
    print(f"IoU of {name:10}  {value:.3f}")
  print(f"mean IoU {found.mean():.3f} on {len(images)} new scenes")
  draw(images[:6], labels[:6], predicted[:6], flags.out)
  print(f"six of them: {flags.out}")


def draw(
  images: np.ndarray,
  labels: np.ndarray,
  predicted: np.ndarray,
  out: pathlib.Path,
) -> None:
  """Draws scenes, and below them what they hold and what was found."""
  rows = {"scene": images / 4 + 0.5, "truth": labels, "found": predicted}
  figure = Figure(figsize=(1.5 * len(images), 4.8), layout="constrained")
  figure.suptitle("Squares, discs and triangles, by pixel")
  axes = figure.subplots(len(rows), len(images))
  for row, (name, pictures) in enumerate(rows.items()):
    axes[row, 0].set_ylabel(name)
    for column, picture in enumerate(pictures):
      axes[row, column].imshow(
        picture.clip(0, 1) if row == 0 else picture, vmin=0, vmax=3
      )
      axes[row, column].set(xticks=[], yticks=[])
  figure.savefig(out, dpi=120)


if __name__ == "__main__":
  main()

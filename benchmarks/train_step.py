"""A whole training step: this package, Flax's example and PyTorch in turn.

    pip install torch
    python benchmarks/train_step.py                    # four nets, on CPU
    python benchmarks/train_step.py resnet50-224 --batch 64 256 --bfloat16

Prints images/s of each (median of the rounds, and the range) and the ratio to
PyTorch eager, round by round. Every step is forward, cross-entropy, backward
and momentum SGD on one batch that lies on the device; ours and the example's
also sum metrics, and ours normalises uint8 pixels. "Own jit" is a step as a
user of the modules writes it; `--before DIR` adds both of another checkout of
this repository. PyTorch's convolutions are channels_last; its threads are as
many as the cores.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import sys
from typing import Any

from turns import take_turns, Work


@dataclasses.dataclass(frozen=True)
class Case:
  """A net and what it is fed.

  Attributes:
    model: Name in `flax_resnet.list_models()`.
    sizes: Blocks of each stage, for the two re-descriptions.
    size: Height and width of the images.
    batch: Examples of a step.
    bottleneck: The kind of block.
    cifar: 3x3 stem, zero-padded identity shortcuts, 10 classes.
    bfloat16: Computed in bfloat16, with float32 parameters.
    groups: Groups of the 3x3 convolutions, of ResNeXt.
  """

  model: str
  sizes: tuple[int, ...]
  size: int
  batch: int
  bottleneck: bool = False
  cifar: bool = False
  bfloat16: bool = False
  groups: int = 1

  @property
  def widths(self) -> tuple[int, ...]:
    return (16, 32, 64) if self.cifar else (64, 128, 256, 512)

  @property
  def num_classes(self) -> int:
    return 10 if self.cifar else 1000


def resnet(depth: int, sizes: tuple[int, ...], size: int, batch: int) -> Case:
  return Case(f"resnet{depth}", sizes, size, batch, bottleneck=depth >= 50)


CASES = {
  "resnet20-32": Case("cifar_resnet20", (3, 3, 3), 32, 128, cifar=True),
  "resnet18-128": resnet(18, (2, 2, 2, 2), 128, 32),
  "resnet50-224": resnet(50, (3, 4, 6, 3), 224, 8),
  "resnet18-64": resnet(18, (2, 2, 2, 2), 64, 32),
  "resnext50-96": Case(
    "resnext50_32x4d", (3, 4, 6, 3), 96, 8, bottleneck=True, groups=32
  ),
}
ON_GPU = {
  f"resnet{depth}-224": resnet(depth, sizes, 224, 256)
  for depth, sizes in {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
  }.items()
}


def arrays(case: Case):
  """Returns images uint8 [b, h, w, 3] and labels int32 [b]."""
  import numpy as np

  rng = np.random.default_rng(0)
  shape = (case.batch, case.size, case.size, 3)
  labels = rng.integers(0, case.num_classes, case.batch, np.int32)
  return rng.integers(0, 256, shape, np.uint8), labels


def our_step(case: Case, freezing=None, **options):
  """Returns the jitted step of the trainer, a state and a batch."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from flax_resnet import create_model, sharding
  from flax_resnet.augment import normalize
  from flax_resnet.training import losses, optimizers
  from flax_resnet.training.freezing import NOTHING
  from flax_resnet.training.state import create_state
  from flax_resnet.training.steps import TrainStep

  mesh = sharding.make_mesh(jax.devices()[:1])
  model = create_model(
    case.model,
    num_classes=case.num_classes,
    dtype=jnp.bfloat16 if case.bfloat16 else jnp.float32,
    **options,
  )
  optimizer = optimizers.sgd(optax.constant_schedule(0.1), 0.9, True, 1e-4)
  step = TrainStep(
    model=model,
    optimizer=optimizer,
    augment=lambda key, images, labels, step: (
      normalize(images, (0.5,) * 3, (0.25,) * 3),
      labels,
    ),
    loss=losses.cross_entropy,
    mesh=mesh,
    freezing=freezing or NOTHING,
  ).jit()
  state = create_state(
    model,
    optimizer,
    (case.size, case.size, 3),
    seed=0,
    freezing=freezing or NOTHING,
  )
  state = sharding.replicate(state, mesh)
  images, labels = arrays(case)
  batch = sharding.shard_batch(
    {"image": images, "label": labels, "mask": np.ones(case.batch, bool)}, mesh
  )
  return step, state, batch


def ours(case: Case, **options) -> Work:
  return _repeated(*our_step(case, **options))


def own_jit(case: Case) -> Work:
  """A step as a user writes it: the module, optax and a plain `jax.jit`."""
  import jax
  import jax.numpy as jnp
  import optax

  import flax_resnet as fr

  model = fr.create_model(
    case.model,
    num_classes=case.num_classes,
    dtype=jnp.bfloat16 if case.bfloat16 else jnp.float32,
  )
  images, labels = arrays(case)
  images = jax.device_put((images.astype("float32") - 127.5) / 64)
  labels = jax.device_put(labels)
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), images[:1]
  )
  optimizer = optax.chain(
    optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9, nesterov=True)
  )

  def step(state, batch):
    params, batch_stats, momentum = state

    def loss(params):
      variables = {"params": params, "batch_stats": batch_stats}
      logits, updates = model.apply(
        variables, batch[0], train=True, mutable=["batch_stats"]
      )
      each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
      return each.mean(), updates["batch_stats"]

    grads, batch_stats = jax.grad(loss, has_aux=True)(params)
    updates, momentum = optimizer.update(grads, momentum, params)
    return [optax.apply_updates(params, updates), batch_stats, momentum]

  params = variables["params"]
  state = [params, variables["batch_stats"], optimizer.init(params)]
  return _repeated(jax.jit(step, donate_argnums=0), state, (images, labels))


def before(case: Case, *, make, folder: str) -> Work:
  """What `make` makes with the package in another checkout."""
  sys.path.insert(0, folder)
  return make(case)


def _repeated(step, state, batch) -> Work:
  import jax

  def work(count: int) -> None:
    nonlocal state
    for _ in range(count):
      state = step(state, batch)
      # The example's step returns metrics as well.
      state = state[0] if isinstance(state, tuple) else state
    jax.block_until_ready(state)

  return work


def flax_step(case: Case):
  """Returns the jitted step of the example, a state and a batch."""
  import flax_example
  import jax
  import jax.numpy as jnp

  if case.groups > 1:
    raise ValueError("it has no groups")
  dtype = jnp.bfloat16 if case.bfloat16 else jnp.float32
  model = flax_example.ResNet(
    case.sizes,
    case.widths,
    case.bottleneck,
    case.cifar,
    case.num_classes,
    dtype,
  )
  images, labels = arrays(case)
  images = (images.astype("float32") - 127.5) / 64
  batch = jax.device_put({"image": images.astype(dtype), "label": labels})
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), batch["image"][:1]
  )
  optimizer, step = flax_example.make_train_step(model, 0.1)
  params = variables["params"]
  state = [params, variables["batch_stats"], optimizer.init(params)]
  return step, state, batch


def flax_example(case: Case) -> Work:
  return _repeated(*flax_step(case))


def pytorch(
  case: Case, *, compiled: bool, frozen: tuple[str, ...] = ()
) -> Work:
  """A step of PyTorch; parameters of `frozen` names need no gradient."""
  import torch
  import torch_resnet

  on_gpu = torch.cuda.is_available()
  device = torch.device("cuda" if on_gpu else "cpu")
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.backends.cudnn.benchmark = True
  model = torch_resnet.ResNet(
    case.sizes,
    case.widths,
    case.bottleneck,
    case.cifar,
    case.num_classes,
    case.groups,
  )
  images, labels = arrays(case)
  image = torch.from_numpy((images.astype("float32") - 127.5) / 64)
  step = torch_resnet.make_train_step(
    model,
    image.to(device).permute(0, 3, 1, 2),  # Channels last, as it lies there.
    torch.from_numpy(labels).long().to(device),
    compiled=compiled,
    amp=case.bfloat16,
    frozen=frozen,
  )

  def work(count: int) -> None:
    for _ in range(count):
      step()
    if on_gpu:
      torch.cuda.synchronize()

  return work


CONTENDERS = {
  "ours": ours,
  "own jit": own_jit,
  "flax example": flax_example,
  "pytorch eager": functools.partial(pytorch, compiled=False),
  "torch.compile": functools.partial(pytorch, compiled=True),
}


def measure(
  case: Case, contenders: dict[str, Any], rounds: int, seconds: float
) -> dict:
  """Returns a row of the table: images/s of every contender, and ratios."""
  makers = {
    name: functools.partial(make, case) for name, make in contenders.items()
  }
  results = take_turns(makers, rounds, seconds)
  base = results.get("pytorch eager")
  row = dataclasses.asdict(case) | {"contenders": {}}
  for name, result in results.items():
    entry = row["contenders"][name] = {"error": result.error}
    if result.rates:
      entry["images_per_second"] = case.batch * result.median
      entry["range"] = [case.batch * f(result.rates) for f in (min, max)]
      if base and base.rates:
        entry["ratio_to_pytorch_eager"] = result.ratio(base)
  return row


def show(row: dict) -> None:
  kind = "bfloat16" if row["bfloat16"] else "float32"
  print(f"{row['model']} {row['size']} px, batch {row['batch']}, {kind}")
  for name, entry in row["contenders"].items():
    if entry["error"]:
      print(f"  {name:16} not measured: {entry['error']}")
      continue
    low, high = entry["range"]
    ratio = entry.get("ratio_to_pytorch_eager")
    print(
      f"  {name:16} {entry['images_per_second']:8.1f} images/s "
      f"({low:.1f} to {high:.1f})"
      + (f"   {ratio:.2f} of pytorch eager" if ratio else "")
    )


def versions() -> str:
  from importlib import metadata

  found = []
  for name in ("jax", "flax", "torch"):
    try:
      found.append(f"{name} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
      found.append(f"no {name}")
  cores = len(os.sched_getaffinity(0))
  return f"{platform.machine()}, {cores} cores; " + ", ".join(found)


def compare(
  description: str | None, contenders: dict[str, Any], batches: list[int]
) -> None:
  """Reads the flags, measures every case and prints it.

  Args:
    description: Of the command.
    contenders: Name to a function of a case that makes the work.
    batches: Batch sizes; empty for those of the cases.
  """
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  every = {**ON_GPU, **CASES}
  parser.add_argument("cases", nargs="*", help=", ".join(every))
  parser.add_argument("--batch", type=int, nargs="+", default=batches)
  parser.add_argument("--bfloat16", action="store_true")
  parser.add_argument("--only", nargs="+", default=list(contenders))
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=5)
  parser.add_argument("--json", action="store_true")
  parser.add_argument(
    "--before",
    metavar="DIR",
    help="checkout of this repository to compare with",
  )
  flags = parser.parse_args()
  if flags.before:
    for name in sorted({"ours", "own jit"} & contenders.keys()):
      contenders[f"{name}, before"] = functools.partial(
        before, make=contenders[name], folder=os.path.abspath(flags.before)
      )
      flags.only += [f"{name}, before"] if name in flags.only else []
  print(versions(), file=sys.stderr)
  rows = []
  for name in flags.cases or CASES:
    for batch in flags.batch or [every[name].batch]:
      case = dataclasses.replace(
        every[name], batch=batch, bfloat16=flags.bfloat16
      )
      chosen = {name: contenders[name] for name in flags.only}
      rows.append(measure(case, chosen, flags.rounds, flags.seconds))
      if not flags.json:
        show(rows[-1])
  if flags.json:
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
  compare(__doc__, CONTENDERS, batches=[])

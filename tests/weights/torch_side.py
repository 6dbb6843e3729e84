"""What PyTorch computes for the cases; `python -m tests.weights.torch_side`.

The references were written with torch 2.13.0, torchvision 0.28.0, timm 1.0.31
and transformers 5.23.0 on CPU.
"""

import logging
import zlib

import numpy as np
import torch

from tests.weights import cases, torch_models


def build(case: cases.Case) -> torch.nn.Module:
  """Returns the network of torchvision, timm, transformers or our tests."""
  kind, *arguments = case.theirs
  match kind:
    case "torchvision":
      resnet = torch_models.load_torchvision().models.resnet
      block, fields = arguments
      return resnet.ResNet(
        getattr(resnet, block), case.sizes, num_classes=10, **fields
      )
    case "timm":
      torch_models.load_torchvision()
      import timm

      name, fields = arguments
      return timm.create_model(
        name, layers=case.sizes, num_classes=10, **fields
      )
    case "transformers":
      torch_models.load_torchvision()
      logging.getLogger("transformers").setLevel(logging.ERROR)
      from transformers import ResNetConfig, ResNetForImageClassification

      layer_type, fields = arguments
      widths = [64, 128, 256, 512]
      if layer_type == "bottleneck":
        widths = [4 * width for width in widths]
      return ResNetForImageClassification(
        ResNetConfig(
          layer_type=layer_type,
          depths=case.sizes,
          hidden_sizes=widths,
          num_labels=10,
          **fields,
        )
      )
    case "cifar":
      return torch_models.CifarResNet(case.sizes, *arguments)
    case "preact":
      return torch_models.PreActCifar(case.sizes, *arguments)
  raise ValueError(kind)


def map_modules(net: torch.nn.Module) -> dict[str, str]:
  """Returns where in a network our feature maps come out."""
  modules = dict(net.named_modules())
  found = {}
  for ours, theirs in {
    "stem": ("resnet.embedder.embedder", "act1", "relu", "stem.conv"),
    **{
      f"stage{n}": (
        f"layer{n}",
        f"resnet.encoder.stages.{n - 1}",
        f"stages.{n - 1}.blocks",
      )
      for n in range(1, 5)
    },
  }.items():
    for name in theirs:
      if name in modules:
        found[ours] = name
        break
  return found


def their_outputs(case: cases.Case, state_dict) -> dict[str, np.ndarray]:
  """Returns what `cases.our_outputs` returns."""
  net = build(case)
  net.load_state_dict(
    {name: torch.from_numpy(value.copy()) for name, value in state_dict.items()}
  )
  found = {}

  def run(side):
    x = torch.from_numpy(cases.images(side).transpose(0, 3, 1, 2).copy())
    result = net(x)
    return getattr(result, "logits", result).numpy()

  maps = {}
  modules = dict(net.named_modules())
  for ours, theirs in map_modules(net).items():
    modules[theirs].register_forward_hook(
      lambda module, inputs, output, ours=ours: maps.__setitem__(
        ours, output.detach().numpy().copy()
      )
    )
  with torch.no_grad():
    net.eval()
    for side in case.sides:
      found[f"logits/{side}"] = run(side)
      if "norm" in modules:  # Ours end with the last BatchNorm and ReLU.
        last = max(name for name in maps if name.startswith("stage"))
        maps[last] = net.norm(torch.from_numpy(maps[last])).relu().numpy()
      found |= {f"{name}/{side}": value for name, value in maps.items()}
    net.train()
    found["train"] = run(case.sides[0])
  for name, value in net.state_dict().items():
    if name.endswith(("running_mean", "running_var")):
      found[name] = value.numpy()
  return found


def their_training(name: str, dtype: str) -> dict[str, np.ndarray]:
  """Returns the losses of ten steps of SGD, and the state after them."""
  case, side, _ = cases.TRAINED[name]
  net = build(case)
  state_dict = cases.filled(cases.our_shapes(case))
  net.load_state_dict({k: torch.tensor(v) for k, v in state_dict.items()})
  net.to(getattr(torch, dtype)).train()
  optimizer = torch.optim.SGD(
    net.parameters(), lr=cases.RATE, momentum=0.9, weight_decay=cases.DECAY
  )
  losses = []
  for x, y in cases.batches(side):
    x = torch.tensor(x.transpose(0, 3, 1, 2), dtype=getattr(torch, dtype))
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x), torch.from_numpy(y))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
  return {"losses": np.array(losses), "state": cases.as_vector(state)}


def main() -> None:
  """Writes the references, for machines without PyTorch."""
  references = {}
  for name, case in cases.CASES.items():
    state_dict = cases.filled(cases.our_shapes(case))
    for key, value in their_outputs(case, state_dict).items():
      if "running" in key and zlib.crc32(key.encode()) % 4:
        continue  # A quarter of them is enough.
      references[f"{name}:{key}"] = cases.thinned(value)
  for name, (_, _, dtypes) in cases.TRAINED.items():
    for dtype in dtypes:
      for key, value in their_training(name, dtype).items():
        references[f"{name}/{dtype}:{key}"] = cases.thinned(value, 1000)
  np.savez_compressed(cases.REFERENCES, **references)
  print(f"{cases.REFERENCES}: {cases.REFERENCES.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()

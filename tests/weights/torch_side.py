"""What PyTorch computes for the cases; `python -m tests.weights.torch_side`.

That writes the references, for tests without PyTorch: last with torch 2.13.0,
torchvision 0.28.0, timm 1.0.31 and transformers 5.24.0 on CPU.
"""

from collections.abc import Mapping
import importlib
import logging

import numpy as np
import torch

from tests.weights import cases, torch_models

torch.set_num_threads(1)  # The workers of a test run share the cores.


def build(
  case: cases.Case, state_dict: Mapping[str, np.ndarray]
) -> torch.nn.Module:
  """Returns the network of PyTorch with its weights, loaded strictly."""
  with torch.device("meta"):  # Without drawing weights.
    net = _network(case)
  tensors = {name: torch.tensor(array) for name, array in state_dict.items()}
  net.load_state_dict(tensors, strict=True, assign=True)
  for module in net.modules():
    if hasattr(module, "init_non_persistent_buffers"):  # A blur's filter.
      module.filt = torch.empty(module.filt.shape)
      module.init_non_persistent_buffers()
  return net


def _network(case: cases.Case) -> torch.nn.Module:
  kind, *arguments = case.theirs
  if kind == "cifar":
    return torch_models.CifarResNet(case.sizes, *arguments)
  if kind == "preact":
    return torch_models.PreActCifar(case.sizes, *arguments)
  torchvision = torch_models.load_torchvision()
  name, fields = arguments
  if kind == "torchvision":
    resnet = torchvision.models.resnet
    block = getattr(resnet, name)
    return resnet.ResNet(block, case.sizes, num_classes=10, **fields)
  if kind == "timm":
    timm = importlib.import_module("timm")
    if "stage_sizes" in dict(case.fields):
      fields = {"layers": case.sizes, **fields}
    return timm.create_model(name, num_classes=10, **fields)
  logging.getLogger("transformers").setLevel(logging.ERROR)
  transformers = importlib.import_module("transformers")
  expansion = 4 if name == "bottleneck" else 1
  config = transformers.ResNetConfig(
    layer_type=name,
    depths=case.sizes,
    hidden_sizes=[expansion * width for width in (64, 128, 256, 512)],
    num_labels=10,
    **fields,
  )
  return transformers.ResNetForImageClassification(config)


def map_modules(net: torch.nn.Module) -> dict[str, torch.nn.Module]:
  """Returns the modules of which our feature maps are the outputs."""
  modules = dict(net.named_modules())
  stems = ("resnet.embedder.embedder", "act1", "relu", "stem.conv")
  names = {"stem": (*stems, "stem.conv3")}
  for n in range(1, 5):
    encoder = f"resnet.encoder.stages.{n - 1}"
    names[f"stage{n}"] = (f"layer{n}", encoder, f"stages.{n - 1}.blocks")
  return {
    ours: next(modules[name] for name in theirs if name in modules)
    for ours, theirs in names.items()
    if any(name in modules for name in theirs)
  }


def their_outputs(
  case: cases.Case, state_dict: Mapping[str, np.ndarray], train: bool = True
) -> dict[str, np.ndarray]:
  """Returns what `cases.our_outputs` returns."""
  dtype = getattr(torch, case.dtype)
  net, maps, outputs = build(case, state_dict).to(dtype), {}, {}

  def run(side):
    x = cases.images(side, case.wider).transpose(0, 3, 1, 2).copy()
    result = net(torch.from_numpy(x).to(dtype))
    return getattr(result, "logits", result).numpy()

  for ours, module in map_modules(net).items():
    module.register_forward_hook(
      lambda module, inputs, output, ours=ours: maps.update(
        {ours: output.detach().numpy().copy()}
      )
    )
  with torch.no_grad():
    net.eval()
    for side in case.sides:
      outputs[f"logits/{side}"] = run(side)
      if hasattr(net, "norm"):  # Ours end with the last norm and activation.
        last = max(name for name in maps if name.startswith("stage"))
        normed = net.norm(torch.from_numpy(maps[last]))
        # timm's has the activation inside.
        relu = case.theirs[0] == "preact"
        maps[last] = (normed.relu() if relu else normed).numpy()
      outputs |= {f"{name}/{side}": value for name, value in maps.items()}
    if not train:
      return outputs
    net.train()
    outputs["train"] = run(case.sides[0])
  for name, value in net.state_dict().items():
    if name.endswith(("running_mean", "running_var")):
      outputs[name] = value.numpy()
  return outputs


def their_training(name: str, dtype: str) -> dict[str, np.ndarray]:
  """Returns the losses of ten steps of SGD, and the state after them."""
  case, _ = cases.TRAINED[name]
  net = build(case, cases.filled(cases.our_shapes(case)))
  net.to(getattr(torch, dtype)).train()
  optimizer = torch.optim.SGD(
    net.parameters(), lr=cases.RATE, momentum=0.9, weight_decay=cases.DECAY
  )
  losses = []
  for x, y in cases.batches(case.sides[0]):
    x = torch.tensor(x.transpose(0, 3, 1, 2), dtype=getattr(torch, dtype))
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x), torch.from_numpy(y))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
  return {"losses": np.array(losses), "state": cases.as_vector(state)}


def main() -> None:
  """Writes the references."""
  references = {}
  for name, case in cases.CASES.items():
    state_dict = cases.filled(cases.our_shapes(case))
    for key, value in their_outputs(case, state_dict).items():
      if key.startswith("logits"):
        references[f"{name}:{key}"] = value
  name, (_, dtypes) = next(iter(cases.TRAINED.items()))
  for key, value in their_training(name, *dtypes).items():
    references[f"{name}:{key}"] = cases.thinned(value, 1000)
  np.savez_compressed(cases.REFERENCES, **references)
  print(f"{cases.REFERENCES}: {cases.REFERENCES.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()

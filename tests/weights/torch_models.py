"""The PyTorch networks that ours are compared with; imports torch."""

import torch
from torch import nn
import torch.nn.functional as F  # noqa: N812 - as everywhere


def load_torchvision():
  """Imports torchvision beside a torch that has none of its operators."""
  library = torch.library.Library("torchvision", "FRAGMENT")
  for operator in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
  ):
    try:
      library.define(operator)
    except RuntimeError:  # It is there: torchvision has its operators.
      break
  import torchvision

  # Whoever drops it takes the operators away again.
  torchvision.stand_ins = library
  return torchvision


class OptionA(nn.Module):
  """akamaster's LambdaLayer: every other pixel, zero channels on both sides."""

  def __init__(self, missing: int):
    super().__init__()
    self.missing = missing

  def forward(self, x):
    half = self.missing // 2
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class CifarBlock(nn.Module):
  def __init__(self, inputs: int, features: int, stride: int, skip: str):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.shortcut = nn.Sequential()
    if skip != "none" and (stride != 1 or inputs != features):
      self.shortcut = (
        OptionA(features - inputs)
        if skip == "A"
        else nn.Sequential(
          nn.Conv2d(inputs, features, 1, stride, bias=False),
          nn.BatchNorm2d(features),
        )
      )
    self.skip = skip

  def forward(self, x):
    f = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(f if self.skip == "none" else f + self.shortcut(x))


class CifarResNet(nn.Module):
  """The nets of akamaster (A), kuangliu (B), and without skips."""

  def __init__(self, sizes, widths, skip, num_classes=10):
    super().__init__()
    self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(widths[0])
    self.act1 = nn.ReLU()
    inputs = widths[0]
    self.stages = []
    for number, (size, width) in enumerate(zip(sizes, widths, strict=True)):
      blocks = []
      for block in range(size):
        stride = 2 if number and not block else 1
        blocks.append(CifarBlock(inputs, width, stride, skip))
        inputs = width
      self.stages.append(f"layer{number + 1}")
      self.add_module(self.stages[-1], nn.Sequential(*blocks))
    self.linear = nn.Linear(inputs, num_classes)

  def forward(self, x):
    x = self.act1(self.bn1(self.conv1(x)))
    for stage in self.stages:
      x = getattr(self, stage)(x)
    return self.linear(x.mean((2, 3)))


class PreActBlock(nn.Module):
  """He et al. 2016 and Zagoruyko & Komodakis 2016, named as timm does."""

  def __init__(self, inputs: int, features: int, stride: int, bottleneck: bool):
    super().__init__()
    outputs = features * (4 if bottleneck else 1)
    # (inputs, outputs, size, stride); the paper's bottleneck strides first.
    convs = (
      [(inputs, features, 1, stride), (features, features, 3, 1)]
      if bottleneck
      else [(inputs, features, 3, stride)]
    )
    convs.append((features, outputs, 1 if bottleneck else 3, 1))
    self.count = len(convs)
    for number, (i, o, size, s) in enumerate(convs, start=1):
      self.add_module(f"norm{number}", nn.BatchNorm2d(i))
      self.add_module(
        f"conv{number}", nn.Conv2d(i, o, size, s, size // 2, bias=False)
      )
    self.downsample = None
    if inputs != outputs or stride != 1:
      self.downsample = nn.Sequential()
      self.downsample.add_module(
        "conv", nn.Conv2d(inputs, outputs, 1, stride, bias=False)
      )

  def forward(self, x):
    f = a = F.relu(self.norm1(x))
    for number in range(1, self.count + 1):
      if number > 1:
        f = F.relu(getattr(self, f"norm{number}")(f))
      f = getattr(self, f"conv{number}")(f)
    return f + (x if self.downsample is None else self.downsample(a))


class PreActCifar(nn.Module):
  def __init__(self, sizes, widths, stem, bottleneck, num_classes=10):
    super().__init__()
    self.stem = nn.Sequential()
    self.stem.add_module("conv", nn.Conv2d(3, stem, 3, 1, 1, bias=False))
    self.stages = nn.ModuleList()
    inputs = stem
    for number, (size, width) in enumerate(zip(sizes, widths, strict=True)):
      stage = nn.Module()
      stage.blocks = nn.Sequential()
      for block in range(size):
        stride = 2 if number and not block else 1
        stage.blocks.append(PreActBlock(inputs, width, stride, bottleneck))
        inputs = width * (4 if bottleneck else 1)
      self.stages.append(stage)
    self.norm = nn.BatchNorm2d(inputs)
    self.head = nn.Module()
    self.head.fc = nn.Conv2d(inputs, num_classes, 1)

  def forward(self, x):
    x = self.stem(x)
    for stage in self.stages:
      x = stage.blocks(x)
    x = F.relu(self.norm(x)).mean((2, 3), keepdim=True)
    return self.head.fc(x).flatten(1)

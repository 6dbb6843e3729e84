"""What training code wraps around the names of a network's tensors.

A model that is compiled, data-parallel, averaged, an attribute of Lightning's
module or an encoder of self-supervised training has the names of the network
behind others: "module.encoder_q.layer1.0.conv1.weight".
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any

from flax_resnet.errors import listing, WeightsError

# Where the network's own names begin: a name in the first block or embedding.
_FIRST = re.compile(
  r"(?:^|\.)(layer1\.0\.|stages\.0\.blocks\.0\.|resnet\.embedder\.)"
)
# torch.compile, FSDP and checkpointed modules: anywhere in a name.
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Of two networks in a file, the one that is meant, by a part of its prefix: of
# MoCo v1 and v2, of MoCo v3, of BYOL, of DINO's averaged and trained network.
_MEANT = ("encoder_q", "base_encoder", "online_encoder", "teacher", "student")
# Their heads project for a loss, and are no classifier; those of SimSiam and
# MoCo v2 have several layers, "fc.0.weight".
_PROJECTING = ("encoder_q", "base_encoder", "online_encoder")
_PROJECTION = re.compile(r"fc\.\d+\.|projection_head\.|prototypes\.")
# What other networks and tools are known by.
_OTHERS = {
  r"(?:\d+\.)+(?:weight|conv1\.weight)$": "the children of a network in a "
  "Sequential, which have numbers for names",
  r"(?:\w+\.)*features\.\d+": "a VGG, DenseNet, MobileNet or EfficientNet",
  r"(?:\w+\.)*(?:patch_embed|cls_token|pos_embed|encoder\.layers\.)": (
    "a vision transformer"
  ),
  r"(?:\w+\.)*stages\.\d+\.blocks\.\d+\.(?:conv_dw|gamma)": "a ConvNeXt",
  r"(?:visual|vision_model|text_model)\.": "CLIP",
  r".*/kernel(:0)?$": "Keras",
  r"(?:model|optimizer)/": "TensorFlow",
  r"lora_|.*\.lora_": "LoRA",
}


def unwrap(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Returns tensors under the names of the network, and what was taken off.

  Args:
    tensors: arrays by name.

  Returns:
    The arrays that belong to the network, and sentences on what was stripped
    from their names and which others were left out; none where nothing was.

  Raises:
    WeightsError: if there are several networks, and none is known as the one
      that is meant.
  """
  inside = {
    part for name in tensors for part in name.split(".") if part in _INSIDE
  }
  named = {
    ".".join(p for p in name.split(".") if p not in _INSIDE): tensor
    for name, tensor in tensors.items()
  }
  if len(named) != len(tensors):
    raise WeightsError(
      f"two tensors have one name without {listing(sorted(inside))}"
    )
  prefix = _prefix(named)
  network = {
    name.removeprefix(prefix): tensor
    for name, tensor in named.items()
    if name.startswith(prefix)
  }
  projecting = any(part in _PROJECTING for part in prefix.split("."))
  heads = [
    name
    for name in network
    if _PROJECTION.match(name) or (projecting and name.startswith("fc."))
  ]
  others = [name for name in named if not name.startswith(prefix)]
  others += [prefix + name for name in heads]
  stripped = [f"{part}." for part in sorted(inside)] + [prefix] * bool(prefix)
  said = []
  if stripped:
    said.append(f"stripped from the names: {', '.join(stripped)}")
  if others:
    said.append(f"left out: {listing(others)}")
  return {k: v for k, v in network.items() if k not in heads}, said


def _prefix(names: Iterable[str]) -> str:
  """Returns what stands before the names of the network."""
  prefixes = {
    name[: match.start(1)] for name in names if (match := _FIRST.search(name))
  }
  if not prefixes or "" in prefixes:
    return ""
  for part in _MEANT:
    if len(prefixes) > 1:
      meant = {prefix for prefix in prefixes if part in prefix.split(".")}
      prefixes = meant or prefixes
  if len(prefixes) > 1:
    raise WeightsError(
      f"the file holds several networks, {listing(sorted(prefixes))}: give a "
      "file of one of them"
    )
  return prefixes.pop()


def likeness(names: Iterable[str]) -> str:
  """Returns "; these look like the names of Keras", or "" for no idea.

  Args:
    names: names of tensors that do not fit.
  """
  names = list(names)
  for pattern, what in _OTHERS.items():
    if any(re.match(pattern, name) for name in names):
      return f"; these look like the names of {what}"
  return ""

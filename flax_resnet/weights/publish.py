"""A folder of weights as the Hugging Face hub, and timm, take them."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import functools
import json
import math
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp

from flax_resnet import storage
from flax_resnet.errors import WeightsError
from flax_resnet.models import create_model, list_models, ResNet, tags
from flax_resnet.models.variables import (
  count_parameters,
  image_channels,
  unstack,
)
from flax_resnet.weights import files
from flax_resnet.weights.preprocessing import IMAGENET, Preprocessing
from flax_resnet.weights.state_dict import to_torch

# The first convolution under timm's names.
_STEMS = ("conv1", "conv1.0", "stem.conv", "stem.conv1")
# Fields that change how a network is trained or computed, not what.
_NOT_KEPT = {
  *("num_classes", "dtype", "param_dtype", "norm_group_size", "remat", "scan"),
  *("stochastic_depth", "dropout", "head_dropout", "zero_init_residual"),
  *("space_to_depth", "parent", "name"),
}


def save_pretrained(
  folder: str | pathlib.Path,
  model: ResNet,
  variables: Mapping[str, Any],
  *,
  name: str | None = None,
  preprocessing: Preprocessing | None = None,
  class_names: Sequence[str] = (),
  recipe: Mapping[str, Any] | None = None,
  results: Mapping[str, Any] | None = None,
  multi_label: bool = False,
) -> None:
  """Writes a folder that `from_pretrained` opens, and timm as "local-dir:".

  It holds model.safetensors in timm's names, config.json with timm's keys and a
  card, README.md; `hf upload` publishes it as it is. A line on stderr says
  where timm has no such architecture.

  Args:
    folder: path of the folder, which is made.
    model: the network.
    variables: {"params": ..., "batch_stats": ...} of `model`.
    name: name of the network, one of `list_models()`; None (default) for the
      one whose fields are nearest.
    preprocessing: preprocessing of images; None (default) for ImageNet's.
    class_names: names of the classes by label; default (), unknown.
    recipe: config of the run that they are from, for the card.
    results: metrics as measured, "val/top1" (or "val/map") in [0, 1],
      "val/count" and "step", for the card.
    multi_label: whether an image may have several of the classes, so that each
      has a probability of its own; default False.

  Raises:
    WeightsError: if the folder is there already, or no name has such blocks.
  """
  folder = pathlib.Path(folder).expanduser()
  if folder.exists():
    raise WeightsError(f"{folder} is there already: choose another folder")
  channels = image_channels(variables["params"])
  preprocessing = preprocessing or IMAGENET.with_channels(channels)
  name, fields = _name_and_fields(model, name)
  in_timm = name in tags.timm_models() and not fields
  if not in_timm:
    files.say(
      f"{folder}: timm has no architecture for {name}"
      f"{' with ' + ', '.join(fields) if fields else ''}; flax_resnet opens it"
    )
  tensors = to_torch(variables, model)
  kept = ("val/top1", "val/map", "val/count", "step")
  measured = {k: v for k, v in (results or {}).items() if k in kept}
  ours = {"fields": fields, "results": measured, "multi_label": multi_label}
  ours = {key: value for key, value in ours.items() if value}
  config = {
    "architecture": name,
    "num_classes": model.num_classes,
    "num_features": _num_features(model, variables),
    "global_pool": getattr(model, "global_pool", "avg"),
    **({"label_names": list(class_names)} if class_names else {}),
    **({"model_args": {"in_chans": channels}} if channels != 3 else {}),
    **({"flax_resnet": ours} if ours else {}),
    "pretrained_cfg": _pretrained_cfg(tensors, model, preprocessing, channels),
  }
  partial = folder.with_name(f"{folder.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    files.write(partial / "model.safetensors", tensors)
    storage.write_json(partial / "config.json", config)
    card = _card(folder.name, config, in_timm, variables, recipe, results)
    (partial / "README.md").write_text(card)
    partial.rename(folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _name_and_fields(
  model: ResNet, name: str | None
) -> tuple[str, dict[str, Any]]:
  """Returns the name that is nearest to a network, and how it differs."""
  names = list_models() if name is None else [name.partition(".")[0]]
  different = {each: _different(model, create_model(each)) for each in names}
  name = min(names, key=lambda each: len(different[each]))
  fields = different[name]
  try:
    return name, json.loads(json.dumps(fields))
  except TypeError:  # A class of blocks, which is code.
    raise WeightsError(
      f"the network differs from {name} in {', '.join(fields)}, which cannot "
      "be written: save one of list_models()"
    ) from None


def _different(model: ResNet, named: ResNet) -> dict[str, Any]:
  """Returns the fields of a network that are others than those of a named."""
  fields = (f.name for f in dataclasses.fields(ResNet))
  kept = [name for name in fields if name not in _NOT_KEPT]
  return {
    name: getattr(model, name)
    for name in kept
    if _comparable(getattr(model, name)) != _comparable(getattr(named, name))
  }


def _comparable(value: Any) -> Any:
  if isinstance(value, functools.partial):
    return value.func, value.args, value.keywords
  return tuple(value) if isinstance(value, list) else value


def _num_features(model: ResNet, variables: Mapping[str, Any]) -> int:
  """Returns the number of pooled features."""
  trunk = model.clone(num_classes=0, scan=False)
  images = jnp.zeros((1, 32, 32, image_channels(variables["params"])))
  pooled = jax.eval_shape(
    functools.partial(trunk.apply, train=False), unstack(variables), images
  )
  return pooled.shape[-1]


def _pretrained_cfg(
  names: Collection[str],
  model: ResNet,
  preprocessing: Preprocessing,
  channels: int,
) -> dict[str, Any]:
  """Returns what timm wants to know of weights."""
  (height, width), short_side = preprocessing.shape, preprocessing.short_side
  crop = preprocessing.crop_fraction
  # A little less is rounded right.
  if height == width and math.floor(height / crop) != short_side:
    crop = math.floor(height / short_side * 1e6) / 1e6
  return {
    "custom_load": False,
    "input_size": [channels, height, width],
    "fixed_input_size": False,
    "interpolation": preprocessing.interpolation,
    "crop_pct": crop,
    "crop_mode": "center",
    "mean": list(preprocessing.mean),
    "std": list(preprocessing.std),
    "num_classes": model.num_classes,
    "first_conv": next(n for n in _STEMS if f"{n}.weight" in names),
    "classifier": "head.fc" if model.pre_activation else "fc",
  }


def _card(
  title: str,
  config: Mapping[str, Any],
  in_timm: bool,
  variables: Mapping[str, Any],
  recipe: Mapping[str, Any] | None,
  results: Mapping[str, Any] | None,
) -> str:
  """Returns the text of README.md, which the hub shows."""
  cfg, results = config["pretrained_cfg"], results or {}
  _, height, width = cfg["input_size"]
  parameters = count_parameters(variables["params"])
  facts = {
    "Architecture": f"`{config['architecture']}`, {parameters:,} parameters, "
    f"{config['num_classes']:,} classes",
    "Images": f"{height} x {width} pixels (crop_pct {cfg['crop_pct']:.6g}, "
    f"{cfg['interpolation']}), mean {cfg['mean']}, std {cfg['std']}",
  }
  if recipe:
    data = recipe.get("data", {})
    facts["Data set"] = f"`{data.get('name')}`, {data.get('train_split')}"
  if "step" in results:
    facts["Steps"] = f"{results['step']:,}"
  if config.get("flax_resnet", {}).get("multi_label"):
    facts["Classes"] = "an image may have several: sigmoid, not softmax"
  for key, of in (("val/top1", "top-1"), ("val/map", "mean average precision")):
    if isinstance(share := results.get(key), float):
      count = results.get("val/count")
      images = f" of {count:,} images" if count else ""
      facts["Accuracy"] = f"{of} {share:.2%}{images}, as measured"
  library = "timm" if in_timm else "flax_resnet"
  lines = [
    "---",
    f"library_name: {library}",
    "pipeline_tag: image-classification",
    "tags:",
    *(f"- {tag}" for tag in ("image-classification", library, "jax", "flax")),
    "---",
    f"# {title}",
    "",
    *(f"- **{key}:** {fact}" for key, fact in facts.items()),
    "",
    "Written by [flax_resnet](https://arxiv.org/abs/1512.03385), a residual "
    "network in JAX/Flax with its trainer.",
    "",
    "## In JAX",
    "",
    "```python",
    "import flax_resnet as fr",
    "",
    "# Or a folder with these files.",
    f'model, variables = fr.from_pretrained("hf-hub:OWNER/{title}")',
    "logits = model.apply(variables, images, train=False)  # [b, h, w, c]",
    "```",
    "",
    "## In timm",
    "",
  ]
  if in_timm:
    lines += [
      "```python",
      "import timm",
      "",
      "# Or local-dir: and a folder with these files.",
      f'model = timm.create_model("hf-hub:OWNER/{title}", pretrained=True)',
      "logits = model.eval()(images)  # [b, c, h, w]",
      "```",
    ]
  else:
    lines += ["timm has no architecture for this network."]
  if recipe:
    data = recipe.get("data", {})
    # Where the data lies is of no use elsewhere, and nobody's concern.
    data = {k: v for k, v in data.items() if k not in ("data_dir", "root")}
    lines += ["", "## Recipe", "", "```json"]
    lines += [storage.to_json({**recipe, "data": data}, indent=2), "```"]
  return "\n".join(lines) + "\n"

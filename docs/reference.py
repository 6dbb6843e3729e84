"""Writes reference.md from the docstrings: python docs/reference.py."""

from collections.abc import Iterator
import pathlib
import re

import griffe

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
MODULES = {
  "The network": (
    "models.zoo",
    "models.blocks",
    "models.preact",
    "models.resnet",
    "models.shortcut",
    "models.layers",
    "models.folding",
    "models.start",
    "models.operations",
  ),
  "Weights": (
    "weights.pretrained",
    "weights.state_dict",
    "weights.files",
    "weights.preprocessing",
  ),
  "Use": ("predictor", "serialization"),
  "Data": (
    "data.opening",
    "data.datasets",
    "data.sources",
    "data.folder",
    "data.arrays",
    "data.prepared",
    "data.decoding",
    "data.transforms",
    "data.policies",
    "data.order",
    "data.pipeline",
    "data.augment",
    "data.mixing",
  ),
  "Training": (
    "training.loop",
    "training.recipe",
    "training.run",
    "training.steps",
    "training.losses",
    "training.optim",
    "training.layerwise",
    "training.schedules",
    "training.averaging",
    "training.accumulation",
    "training.state",
    "training.warm_start",
    "training.checkpoint",
    "training.metrics",
    "sharding",
  ),
  "Insight": (
    "insight.probe",
    "insight.trained",
    "insight.mistakes",
    "insight.study",
    "insight.comparison",
  ),
}
HEAD = """# Reference

From the docstrings, by `python docs/reference.py`. What most projects need is
in `import flax_resnet as fr`: {names}.

"""


def render() -> str:
  """Returns the page."""
  package = griffe.load(
    "flax_resnet", search_paths=[ROOT], docstring_parser="google"
  )
  names = sorted(
    f"`{name}`" for name, member in package.members.items() if member.is_alias
  )
  lines = [HEAD.format(names=", ".join(names))]
  for title, modules in MODULES.items():
    lines.append(f"## {title}\n")
    for name in modules:
      lines.extend(_module(package[name]))
  return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _module(module: griffe.Module) -> Iterator[str]:
  path = module.filepath.relative_to(ROOT)
  yield f"### [{module.path}](../{path})\n"
  yield from _docstring(module)
  for member in module.members.values():
    if _is_documented(member):
      yield from _object(member, 4)


def _object(thing: griffe.Object, level: int) -> Iterator[str]:
  name = thing.path.removeprefix(thing.module.path + ".")
  yield f"{'#' * level} {name}\n"
  yield f"```python signature\n{_signature(thing)}\n```\n"
  yield from _docstring(thing)
  if thing.is_class:
    for member in thing.members.values():
      if _is_documented(member):
        yield from _object(member, level + 1)


def _is_documented(member: griffe.Object | griffe.Alias) -> bool:
  return (
    not member.is_alias
    and (member.is_class or member.is_function or "property" in member.labels)
    and not member.name.startswith("_")
    and member.has_docstring
  )


def _signature(thing: griffe.Object) -> str:
  if thing.is_attribute:
    return f"{thing.name}: {thing.annotation}"
  if not thing.is_class:
    return _wrapped(thing.signature())
  bases = ", ".join(map(str, thing.bases))
  lines = [f"class {thing.name}({bases}):" if bases else f"class {thing.name}:"]
  for member in thing.members.values():
    if (
      member.is_attribute
      and "property" not in member.labels
      and member.annotation
      and not member.name.startswith("_")
    ):
      value = "" if member.value is None else f" = {member.value}"
      lines.append(f"  {member.name}: {member.annotation}{value}")
  return "\n".join(lines) if lines[1:] else lines[0].rstrip(":")


def _wrapped(signature: str) -> str:
  """Returns a signature with a parameter a line, if one line is too long."""
  if len(signature) <= 80:
    return signature
  name, _, rest = signature.partition("(")
  parts, depth, start = [], 1, 0
  for place, letter in enumerate(rest):
    depth += (letter in "([{") - (letter in ")]}")
    if depth == 0 or (depth == 1 and letter == ","):
      parts.append(rest[start:place].strip())
      start = place + 1
    if depth == 0:
      break
  inside = "".join(f"  {part},\n" for part in parts)
  return f"{name}(\n{inside}){rest[start:]}"


def _docstring(thing: griffe.Object) -> Iterator[str]:
  for section in thing.docstring.parsed if thing.docstring else ():
    kind = section.kind.value
    if kind == "text":
      yield section.value + "\n"
    elif kind in ("parameters", "attributes"):
      yield f"{kind.capitalize()}:\n"
      for item in section.value:
        yield f"- `{item.name}`: {_indented(item.description)}"
    elif kind == "raises":
      yield "\nRaises:\n"
      for item in section.value:
        yield f"- `{item.annotation}`: {_indented(item.description)}"
    elif kind in ("returns", "yields"):
      text = " ".join(item.description for item in section.value)
      yield f"\n{kind.capitalize()}: {text}"
    else:
      raise ValueError(f"{thing.path}: nothing here renders {kind}")
    yield ""


def _indented(text: str) -> str:
  return text.replace("\n", "\n  ")


if __name__ == "__main__":
  PAGE.write_text(render())

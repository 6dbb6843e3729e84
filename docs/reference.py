"""Writes docs/reference.md from the docstrings: python docs/reference.py.

It lists the functions, classes and properties of `flax_resnet` that are public:
without a leading underscore, with a docstring, in the module that defines them.
The commands are left out: `--help` describes them.
"""

import argparse
from collections.abc import Iterator
import pathlib
import re

import griffe

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "flax_resnet"
PAGE = ROOT / "docs" / "reference.md"
COMMANDS = ("cli", "__main__")
HEAD = """# Reference

From the docstrings, by `python docs/reference.py`. `import flax_resnet as fr`
has {names}.

"""


def render() -> str:
  """Returns the page."""
  package = griffe.load(PACKAGE, search_paths=[ROOT], docstring_parser="google")
  names = ", ".join(f"`{name}`" for name in public_names(package))
  lines = [HEAD.format(names=names)]
  for module in _modules(package):
    lines.extend(_module(module))
  return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def public_names(package: griffe.Module) -> list[str]:
  """Returns the names that the package takes from its own modules, sorted."""
  return sorted(
    name
    for name, member in package.members.items()
    if member.is_alias and member.target_path.startswith(f"{PACKAGE}.")
  )


def _modules(package: griffe.Module) -> Iterator[griffe.Module]:
  """Yields the modules with public members, packages before their parts."""
  for name, module in sorted(package.modules.items()):
    # What a module imports is among its members as well.
    if name not in COMMANDS and not module.is_alias:
      if any(map(_is_public, module.members.values())):
        yield module
      yield from _modules(module)


def _module(module: griffe.Module) -> Iterator[str]:
  path = module.filepath.relative_to(ROOT)
  yield f"## [{module.path}](../{path})\n"
  yield from _docstring(module)
  for member in module.members.values():
    if _is_public(member):
      yield from _object(member, 3)


def _object(thing: griffe.Object, level: int) -> Iterator[str]:
  name = thing.path.removeprefix(thing.module.path + ".")
  yield f"{'#' * level} {name}\n"
  yield f"```python signature\n{_signature(thing)}\n```\n"
  yield from _docstring(thing)
  if thing.is_class:
    for member in thing.members.values():
      if _is_public(member):
        yield from _object(member, level + 1)


def _is_public(member: griffe.Object | griffe.Alias) -> bool:
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
  for index, letter in enumerate(rest):
    depth += (letter in "([{") - (letter in ")]}")
    if depth == 0 or (depth == 1 and letter == ","):
      parts.append(rest[start:index].strip())
      start = index + 1
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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, default=PAGE, metavar="FILE")
  parser.parse_args().out.write_text(render())


if __name__ == "__main__":
  main()

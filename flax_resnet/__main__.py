"""python -m flax_resnet VERB: what is done around a training run."""

import argparse
import importlib
import sys

from flax_resnet import command

VERBS = (
  "convert",
  "evaluate",
  "export",
  "inspect",
  "models",
  "predict",
  "prepare",
)


def main() -> None:
  """Runs one verb."""
  parser = command.Parser(prog="python -m flax_resnet", description=__doc__)
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  modules = {}
  for name in VERBS:
    module = modules[name] = importlib.import_module(
      f"flax_resnet.verbs.{name}"
    )
    verb = verbs.add_parser(
      name,
      help=str(module.__doc__).partition("\n")[0].rstrip("."),
      description=module.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    module.add_arguments(verb)
  with command.exits():
    flags, overrides = parser.parse_with_overrides()
    if overrides and flags.verb != "evaluate":
      parser.error(f"--config.{overrides[0]} is not a flag of {flags.verb}")
    command.keep_what_is_compiled()
    modules[flags.verb].run(flags, overrides)


if __name__ == "__main__":
  sys.exit(main())

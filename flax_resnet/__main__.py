"""python -m flax_resnet VERB: what is done around a training run."""

import argparse
import sys

from flax_resnet.cli import (
  check,
  convert,
  evaluate,
  export,
  inspect,
  models,
  predict,
  prepare,
  report,
  train,
)
from flax_resnet.cli.flags import enable_compilation_cache, exit_codes, Parser

VERBS = {
  "check": check,
  "convert": convert,
  "evaluate": evaluate,
  "export": export,
  "inspect": inspect,
  "models": models,
  "predict": predict,
  "prepare": prepare,
  "report": report,
  "train": train,
}


# Those that take --config.key=value.
_WITH_OVERRIDES = ("check", "evaluate", "inspect", "prepare", "train")


def main() -> None:
  """Runs one verb."""
  parser = Parser(prog="python -m flax_resnet", description=__doc__)
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  for name, module in VERBS.items():
    verb = verbs.add_parser(
      name,
      help=str(module.__doc__).partition("\n")[0].rstrip("."),
      description=module.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    module.add_arguments(verb)
  with exit_codes():
    args = parser.parse_with_overrides()
    if args.overrides and args.verb not in _WITH_OVERRIDES:
      parser.error(f"--config.{args.overrides[0]} is not a flag of {args.verb}")
    if args.verb != "train":  # Which joins other hosts first.
      enable_compilation_cache()
    VERBS[args.verb].run(args)


if __name__ == "__main__":
  sys.exit(main())

"""List the networks with their parameters and multiply-adds.

Multiply-adds (GMACs, 10^9) are those of one image of 224 pixels, or of 32 for
the CIFAR nets. With --pretrained, the published weights: pixels and top-1 on
ImageNet as they are best tested, and the licence. Nothing is computed or
downloaded.
"""

import argparse
import collections
import dataclasses

from etils import epy

from flax_resnet import storage
from flax_resnet.errors import InputError, listing

with epy.lazy_imports():
  from flax_resnet import models
  from flax_resnet.models import cost, tags, zoo


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "pattern", nargs="?", default="*", help="of the names: '*50*'"
  )
  parser.add_argument(
    "--pretrained", action="store_true", help="published weights, by tag"
  )
  parser.add_argument("--json", action="store_true", help="an object a line")


def run(args: argparse.Namespace) -> None:
  """Prints a line for each network, or for each tag."""
  names = models.list_models(args.pattern, pretrained=args.pretrained)
  if not names:
    what = "published weights have" if args.pretrained else "network has"
    raise InputError(f"no {what} a name like {args.pattern!r}: see the models")
  if args.pretrained:
    _print_tags(names, args.json)
    return
  if not args.json:
    print(
      f"{'model':24} {'parameters':>12} {'GMACs':>7} {'at':>4}  source; tags"
    )
  tags_of = collections.defaultdict(list)
  for tag in tags.published().values():
    tags_of[tag.model].append(tag.tag)
  for name in names:
    size = cost.usual_size(models.create_model(name))
    costs, source = cost.known_costs()[name], zoo.source_of(name)
    published = f"; {listing(tags_of[name], 3)}" if tags_of[name] else ""
    row = (
      f"{name:24} {costs.parameters:12,} {costs.multiply_adds / 1e9:7.3f} "
      f"{size:4}  {source}{published}"
    )
    if args.json:
      fields = {"image_size": size, "source": source, "tags": tags_of[name]}
      row = storage.to_json(
        {"name": name, **dataclasses.asdict(costs), **fields}
      )
    print(row, flush=True)


def _print_tags(names: list[str], as_json: bool) -> None:
  if not as_json:
    print(f"{'tag':44} {'pixels':>6} {'top1':>6} {'classes':>7}  licence")
  for name in names:
    tag = tags.find(name)
    top1 = "" if tag.top1 is None else f"{tag.top1:.2f}"
    row = (
      f"{name:44} {tag.test_image_size:6} {top1:>6} {tag.num_classes:7,}  "
      f"{tag.license or 'unknown'}"
    )
    if as_json:
      row = storage.to_json({"name": name, **dataclasses.asdict(tag)})
    print(row, flush=True)

"""Start-up on a folder of a million files, beside torchvision's `ImageFolder`.

    pip install torchvision
    python benchmarks/folder_scan.py --count 1281167

Each in a process of its own, in turn, on files in 1,000 folders:
the seconds until the records can be read, and by how much the resident set has
grown at most. Of this package, the folder scanned, the folder at a restart
(with the index of the scan before), and a manifest of the same files; and what
a worker process is sent.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from train_step import versions

ROOT = pathlib.Path(__file__).parents[1]
CLASSES = 1000
MAX_LINKS = 50_000  # ext4 takes 65,000.
# What is imported is not counted.
MEASURE = r"""
import pickle, re, sys, time
kind, root = sys.argv[1:]
if kind == "torchvision":
  from torchvision.datasets import ImageFolder
  make = lambda: ImageFolder(root)
else:
  from flax_resnet.data.folder import FolderSource
  from flax_resnet.data.manifest import ManifestSource
  from flax_resnet.data.sources import Columns
  make = {
    "manifest": lambda: ManifestSource(root + "/all.csv", "train", Columns()),
  }.get(kind, lambda: FolderSource(root, "train"))
def status(key):
  with open("/proc/self/status") as file:
    return 1024 * int(re.search(key + r":\s+(\d+) kB", file.read())[1])

with open("/proc/self/clear_refs", "w") as file:
  file.write("5")  # The peak begins here.
before, start = status("VmRSS"), time.perf_counter()
source = make()
seconds = time.perf_counter() - start
grown = status("VmHWM") - before
sent = 0 if kind == "torchvision" else len(pickle.dumps(source))
print(len(source), seconds, grown, sent)
"""


def write(root: pathlib.Path, count: int) -> None:
  """Writes files and a manifest of them; the names are as ImageNet's.

  Each name is a link to one of few files, which differs from a file of its own
  only in how long it takes to make and to remove.
  """
  with (root / "all.csv").open("w") as manifest:
    manifest.write("path,label\n")
    for label in range(CLASSES):
      name = f"n{10_000_000 + 137 * label}"
      (root / name).mkdir()
      for number in range(label, count, CLASSES):
        path = f"{name}/{name}_{number}.JPEG"
        file = root.parent / f"file{number // MAX_LINKS}"
        if not file.exists():
          file.write_bytes(b"x")
        os.link(file, root / path)
        manifest.write(f"{path},{name}\n")


def measure(kind: str, root: pathlib.Path, cache: str) -> list[float]:
  """Returns records, seconds, bytes of growth and bytes sent."""
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  done = subprocess.run(
    [sys.executable, "-c", MEASURE, kind, root],
    env=os.environ | {"XDG_CACHE_HOME": cache, "PYTHONPATH": path},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return [float(word) for word in done.stdout.split()]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--count", type=int, default=1_281_167)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  print(versions())
  kinds = ("torchvision", "scanned", "restarted", "manifest")
  results: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder, "files")
    root.mkdir()
    start = time.perf_counter()
    write(root, args.count)
    print(
      f"{args.count:,} files, written in {time.perf_counter() - start:.0f} s"
    )
    for number in range(args.rounds):
      cache = os.path.join(folder, f"cache{number}")
      for kind in kinds:
        results[kind].append(measure(kind, root, cache))
  theirs = [seconds for _, seconds, *_ in results["torchvision"]]
  for kind, rows in results.items():
    count, _, _, sent = rows[0]
    times = [row[1] for row in rows]
    ratios = [a / b for a, b in zip(theirs, times, strict=True)]
    print(
      f"{kind:11} {count:,.0f} records  {statistics.median(times):6.2f} s "
      f"({min(times):.2f} to {max(times):.2f})  "
      f"{statistics.median(ratios):5.1f} times as fast as torchvision  "
      f"{max(row[2] for row in rows) / count:4.0f} bytes a record at most  "
      f"{sent:,.0f} bytes for a worker"
    )


if __name__ == "__main__":
  main()

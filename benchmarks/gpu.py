"""Everything about speed on one GPU, in one go: about half an hour.

    pip install -e '.[cuda]' torch
    python benchmarks/gpu.py --out gpu.md
    python benchmarks/gpu.py --smoke       # on any machine: does it all run?

Training of ResNet-50 in bfloat16 at several batch sizes against PyTorch's
`torch.compile` (channels_last, autocast) on the same card in the same run;
other depths; what settings of XLA and of the network change; inference; where
the time of a step goes. Writes Markdown tables, and prints rows as they come.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import inference
import train_step
from train_step import Case, measure, show
from turns import Work

BATCHES = (64, 128, 256, 512)
DEPTHS = (18, 34, 101, 152)
# Each alone, against none. A flag that this XLA does not know ends its process,
# and the table says so.
FLAGS = {
  "latency hiding scheduler": "--xla_gpu_enable_latency_hiding_scheduler=true",
  "Triton for matrix products off": "--xla_gpu_enable_triton_gemm=false",
  "all Triton matrix products": "--xla_gpu_triton_gemm_any=true",
  "no command buffers": "--xla_gpu_enable_command_buffer=",
  "thorough autotuning": "--xla_gpu_exhaustive_tiling_search=true",
  "cuDNN for fused matrix products": "--xla_gpu_cudnn_gemm_fusion_level=3",
}


def ours_with(flags: str, case: Case) -> Work:
  """Sets flags of XLA, in the contender's own process, before JAX starts."""
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
  return train_step.ours(case)


SETTINGS = {
  "ours": train_step.ours,
  "space_to_depth": functools.partial(train_step.ours, space_to_depth=True),
  "remat": functools.partial(train_step.ours, remat=True),
  **{name: functools.partial(ours_with, text) for name, text in FLAGS.items()},
}


def table(title: str, rows: list[dict], base: str) -> str:
  """Returns a Markdown table: images/s, and in brackets the ratio to base."""
  names = list(rows[0]["contenders"])
  lines = [
    f"## {title}\n",
    f"| net, batch | {' | '.join(names)} |",
    f"|---|{'--:|' * len(names)}",
  ]
  for row in rows:
    found = row["contenders"]
    cells = []
    for name in names:
      rate = found[name].get("images_per_second")
      of = found[base].get("images_per_second")
      ratio = f" ({rate / of:.2f})" if rate and of else ""
      cells.append(f"{rate:,.0f}{ratio}" if rate else found[name]["error"])
    head = f"{row['model']}, {row['size']} px, {row['batch']}"
    lines.append(f"| {head} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, default="gpu.md")
  parser.add_argument("--smoke", action="store_true")
  flags = parser.parse_args()
  rounds, seconds = (1, 0.1) if flags.smoke else (5, 3.0)

  def measured(contenders, depth, batch):
    case = train_step.ON_GPU[f"resnet{depth}-224"]
    case = dataclasses.replace(case, batch=batch, bfloat16=True)
    if flags.smoke:
      case = dataclasses.replace(case, batch=2, size=32)
    row = measure(case, contenders, rounds, seconds)
    show(row)
    return row

  def rows(contenders, depths=(50,), batches=(256,)):
    if flags.smoke:
      depths, batches = (18,), batches[:1]
    return [measured(contenders, d, b) for d in depths for b in batches]

  # Three networks at a time fit the memory of a card at these batch sizes.
  training = {
    name: train_step.CONTENDERS[name]
    for name in ("ours", "flax example", "torch.compile")
  }
  rivals = {k: v for k, v in training.items() if k != "flax example"}
  parts = [f"# Measured on a GPU\n\n{device()}; {train_step.versions()}\n"]
  for title, found, base in (
    ("Training", lambda: rows(training, batches=BATCHES[:3]), "torch.compile"),
    (
      "Training, large batch",
      lambda: rows(rivals, batches=BATCHES[3:]),
      "torch.compile",
    ),
    ("Other depths", lambda: rows(rivals, depths=DEPTHS), "torch.compile"),
    *(
      # One at a time beside the default, for the same reason.
      (
        f"Setting: {name}",
        functools.partial(
          rows, {"ours": SETTINGS["ours"], name: SETTINGS[name]}
        ),
        "ours",
      )
      for name in SETTINGS
      if name != "ours"
    ),
    (
      "Inference",
      lambda: rows(inference.CONTENDERS, batches=(1, 32, 256)),
      "torch.compile",
    ),
  ):
    print(title)
    parts.append(table(title, found(), base))
    flags.out.write_text("\n".join(parts))  # What is measured is kept.
  parts.append(profile(flags.smoke))
  flags.out.write_text("\n".join(parts))
  print(f"wrote {flags.out}")


def device() -> str:
  """Returns the name of the device, asked for in another process."""
  code = "import jax; print(jax.devices()[0].device_kind)"
  return _output([sys.executable, "-c", code]).strip()


def profile(smoke: bool) -> str:
  """Returns what `profile_step.py` prints of ResNet-50."""
  script = str(pathlib.Path(__file__).with_name("profile_step.py"))
  case = ["resnet20-32"] if smoke else ["resnet50-224", "--batch", "256"]
  out = _output([sys.executable, script, *case, "--bfloat16"])
  return f"## A step by kind of kernel\n\n```\n{out}```\n"


def _output(command: list[str]) -> str:
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return done.stdout


if __name__ == "__main__":
  main()

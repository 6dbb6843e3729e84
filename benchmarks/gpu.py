"""Everything about one GPU, in one go: about half an hour.

    pip install -e '.[cuda]' torch
    python benchmarks/gpu.py --out gpu.md
    python benchmarks/gpu.py training profile --batches 64 256   # parts of it
    python benchmarks/gpu.py --smoke       # on any machine: does it all run?

Training of ResNet-50 in bfloat16 at several batch sizes against PyTorch's
`torch.compile` (channels_last, autocast) on the same card in the same run;
where the time of a step goes; whether two runs are the same bits; inference;
other depths; what settings of XLA and of the network change. Writes Markdown
tables, and prints rows as they come.
"""

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

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


DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
SETTINGS = {
  "deterministic": functools.partial(ours_with, DETERMINISTIC),
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
  parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
  parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=3.0)
  parser.add_argument("--out", type=pathlib.Path, default="gpu.md")
  parser.add_argument("--smoke", action="store_true")
  flags = parser.parse_args()
  if unknown := set(flags.parts) - PARTS.keys():
    parser.error(f"{', '.join(unknown)} is no part: {', '.join(PARTS)}")
  if flags.smoke:
    flags.rounds, flags.seconds, flags.batches = 1, 0.1, [2]
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())
  done = [f"# Measured on a GPU\n\n{device()}; {train_step.versions()}\n"]
  for name in flags.parts or PARTS:
    print(f"{name}:", flush=True)
    done.append(PARTS[name](flags))
    flags.out.write_text("\n".join(done))  # What is measured is kept.
  print(f"wrote {flags.out}")


def measured(
  flags: argparse.Namespace,
  contenders: dict[str, Any],
  depths: Sequence[int] = (50,),
  batches: Sequence[int] = (256,),
) -> list[dict]:
  """Returns a row for each depth and batch size, printed as it comes."""
  rows = []
  for depth in (18,) if flags.smoke else depths:
    for batch in (2,) if flags.smoke else batches:
      case = train_step.ON_GPU[f"resnet{depth}-224"]
      case = dataclasses.replace(case, batch=batch, bfloat16=True)
      if flags.smoke:
        case = dataclasses.replace(case, size=32)
      rows.append(measure(case, contenders, flags.rounds, flags.seconds))
      show(rows[-1])
  return rows


def training(flags: argparse.Namespace) -> str:
  names = ("ours", "flax example", "torch.compile")
  few = {name: train_step.CONTENDERS[name] for name in names}
  rivals = {name: few[name] for name in ("ours", "torch.compile")}
  # Three networks at a time fit the memory of a card up to 256 images.
  small = [batch for batch in flags.batches if batch <= 256]
  large = [batch for batch in flags.batches if batch > 256]
  parts = []
  if small:
    rows = measured(flags, few, batches=small)
    parts.append(table("Training", rows, "torch.compile"))
  if large:
    rows = measured(flags, rivals, batches=large)
    parts.append(table("Training, large batch", rows, "torch.compile"))
  return "\n".join(parts)


def depths(flags: argparse.Namespace) -> str:
  names = ("ours", "torch.compile")
  rivals = {name: train_step.CONTENDERS[name] for name in names}
  rows = measured(flags, rivals, depths=DEPTHS)
  return table("Other depths", rows, "torch.compile")


def inference_alone(flags: argparse.Namespace) -> str:
  rows = measured(flags, inference.CONTENDERS, batches=(1, 32, 256))
  return table("Inference", rows, "torch.compile")


def settings(flags: argparse.Namespace) -> str:
  # One at a time beside the default, so that both fit the memory.
  parts = []
  for name, make in SETTINGS.items():
    rows = measured(flags, {"ours": train_step.ours, name: make})
    parts.append(table(f"Setting: {name}", rows, "ours"))
  return "\n".join(parts)


def same_bits(flags: argparse.Namespace) -> str:
  """Returns whether the digits, trained twice, have the same rows."""
  lines = ["## The digits trained twice\n"]
  for options in ("", DETERMINISTIC):
    logs = []
    for _ in range(2):
      with tempfile.TemporaryDirectory() as workdir:
        command = ["train.py", "--config", "configs/digits.py"]
        command += ["--workdir", workdir]
        if flags.smoke:
          command += ["--config.num_steps=20", "--config.log_every=20"]
        _output(
          [sys.executable, *command],
          # Compiled anew: an algorithm may be chosen by its time.
          JAX_ENABLE_COMPILATION_CACHE="false",
          XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {options}".strip(),
        )
        logs.append(list(_rows(pathlib.Path(workdir))))
    equal = "the same" if logs[0] == logs[1] else f"differ: {logs}"
    lines.append(f"{options or 'no options'}: the losses are {equal}\n")
    print(lines[-1], flush=True)
  return "\n".join(lines)


def _rows(workdir: pathlib.Path) -> Iterator[float]:
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    yield row.get("train/loss", row.get("val/loss"))


def device() -> str:
  """Returns the name of the device, asked for in another process."""
  code = "import jax; print(jax.devices()[0].device_kind)"
  return _output([sys.executable, "-c", code]).strip()


def profile(flags: argparse.Namespace) -> str:
  """Returns what `profile_step.py` prints of ResNet-50."""
  case = ["resnet20-32"] if flags.smoke else ["resnet50-224", "--batch", "256"]
  out = _output(
    [sys.executable, "benchmarks/profile_step.py", *case, "--bfloat16"]
  )
  print(out, flush=True)
  return f"## A step by kind of kernel\n\n```\n{out}```\n"


def _output(command: list[str], **environment: str) -> str:
  done = subprocess.run(
    command,
    cwd=pathlib.Path(__file__).parents[1],
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-1000:]}")
  return done.stdout


PARTS = {
  "training": training,
  "profile": profile,
  "same_bits": same_bits,
  "inference": inference_alone,
  "depths": depths,
  "settings": settings,
}


if __name__ == "__main__":
  main()

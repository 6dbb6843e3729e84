"""Damage to bytes and to JSON, drawn by a seed."""

from collections.abc import Callable, Sequence
import copy
import json
import random
import struct
from typing import Any

# Numbers for headers: signs, borders, far too much.
_HUGE = (0, 1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)
_WORDS = (
  b"\0" * 8,
  b"\xff" * 8,
  b"../../x",
  b"\n",
  b"1e999",
  b"NaN",
  b"[" * 50,
)


def damaged(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  """Returns bytes that are changed at one to four positions.

  Args:
    data: a good file.
    rng: source of the changes.
    others: files of which parts are spliced in.
  """
  for _ in range(rng.choice((1, 1, 2, 4))):
    data = rng.choice(_BYTES)(data, rng, others)
  return data


def _position(data: bytes, rng: random.Random) -> int:
  """Draws a position: half of the time near the start, where headers are."""
  size = len(data) or 1
  return rng.randrange(min(size, rng.choice((32, 512, size, size))))


def _flip(data: bytes, rng: random.Random, _) -> bytes:
  changed = bytearray(data or b"\0")
  for _ in range(rng.choice((1, 1, 2, 16))):
    changed[_position(changed, rng)] ^= 1 << rng.randrange(8)
  return bytes(changed)


def _truncate(data: bytes, rng: random.Random, _) -> bytes:
  return data[: _position(data, rng)]


def _cut(data: bytes, rng: random.Random, _) -> bytes:
  at = _position(data, rng)
  return data[:at] + data[at + rng.choice((1, 2, 4, 100)) :]


def _repeat(data: bytes, rng: random.Random, _) -> bytes:
  at = _position(data, rng)
  return data[:at] + data[at : at + 200] * rng.choice((2, 3, 50)) + data[at:]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
  other = rng.choice(others)
  return data[: _position(data, rng)] + other[_position(other, rng) :]


def _number(data: bytes, rng: random.Random, _) -> bytes:
  at, kind = _position(data, rng), rng.choice(("B", "H", "I", "Q"))
  size = struct.calcsize(kind)
  value = rng.choice(_HUGE) & (256**size - 1)
  packed = struct.pack(rng.choice("<>") + kind, value)
  return data[:at] + packed + data[at + size :]


def _word(data: bytes, rng: random.Random, _) -> bytes:
  at, word = _position(data, rng), rng.choice(_WORDS)
  return data[:at] + word + data[at + rng.choice((0, len(word))) :]


def _digits(data: bytes, rng: random.Random, _) -> bytes:
  """Makes a number that is spelt out a larger or a negative one."""
  positions = [i for i, byte in enumerate(data[:5000]) if 48 <= byte <= 57]
  if not positions:
    return data
  at = rng.choice(positions)
  return (
    data[:at] + rng.choice((b"9" * 9, b"9" * 5000, b"-", b"1e3")) + data[at:]
  )


_BYTES: Sequence[Callable[[bytes, random.Random, Sequence[bytes]], bytes]] = (
  *(_flip, _flip, _truncate, _cut, _repeat, _splice),
  *(_number, _number, _word, _digits),
)

# Values of every kind that JSON has, and some that Python alone reads.
VALUES: Sequence[Any] = (
  *(None, True, False, 0, 1, -1, 0.5, -0.5, 3, 10**9, 10**12, 10**30, 10**400),
  *(1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
  *("", "x", "a.b", "../../../etc/passwd", "\0", "a\nb", "\ud800", "\x1b[2J"),
  *("nan", "é" * 300, [], {}, [1], [[]], [None], ["x"], {"x": 1}, {"": {}}),
  *([1, 2, 3], [0.5] * 3, [10**12] * 3, ["x"] * 3, [-1, 0, 1], {"name": "x"}),
)
_KEYS = ("", "x", "a.b", "name", "__class__", "\ud800", "\n", "0", "step")


def damaged_json(value: Any, rng: random.Random) -> bytes:
  """Returns JSON in which one to four values are others; seldom none at all."""
  value = json.loads(json.dumps(value))
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    value = _changed(value, rng)
  text = json.dumps(value).encode()
  return damaged(text, rng, [text]) if rng.random() < 0.2 else text


def _changed(value: Any, rng: random.Random) -> Any:
  inside = isinstance(value, (dict, list)) and len(value) > 0
  if not inside or rng.random() < 0.03:
    return copy.deepcopy(rng.choice(VALUES))
  at = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
  if isinstance(value[at], (dict, list)) and rng.random() < 0.8:
    value[at] = _changed(value[at], rng)
    return value
  change = rng.random()
  if change < 0.15:
    del value[at]
  elif change < 0.25 and isinstance(value, dict):
    value[rng.choice(_KEYS)] = value.pop(at)
  elif change < 0.35 and isinstance(value, dict):
    value[rng.choice(_KEYS)] = copy.deepcopy(rng.choice(VALUES))
  else:
    value[at] = copy.deepcopy(rng.choice(VALUES))
  return value

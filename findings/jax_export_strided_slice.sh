#!/usr/bin/env bash
# x[:, ::2, ::2] is a strided slice in JAX, but a gather as soon as another
# axis, the batch, has a symbolic size, as in `jax.export`.
#
# Versions: jax 0.10.2, Python 3.11, Linux. jax.lax.slice stays a slice.
# Expected: the same operation for a batch of 2 and for a batch of "b".
# Seen:
#   x[:, ::2, ::2], batch 2: slice
#   x[:, ::2, ::2], batch b: gather
#   lax.slice, batch b: slice
# Exits with 1 when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'EOF'
import jax
from jax import export
import jax.numpy as jnp


def indexed(x):
  return x[:, ::2, ::2]


def sliced(x):
  return jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, 2, 2, 1))


def operation(function, batch):
  shape = export.symbolic_shape(f"{batch}, 8, 8, 3")
  traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, jnp.float32))
  names = {equation.primitive.name for equation in traced.jaxpr.eqns}
  return "gather" if "gather" in names else "/".join(sorted(names))


found = [operation(indexed, 2), operation(indexed, "b"), operation(sliced, "b")]
for what, name in zip(
  ("x[:, ::2, ::2], batch 2", "x[:, ::2, ::2], batch b", "lax.slice, batch b"),
  found,
):
  print(f"{what}: {name}")
raise SystemExit(found != ["slice", "gather", "slice"])
EOF

#!/usr/bin/env bash
# Saving a checkpoint makes a preemption go unnoticed by a loop that asks JAX
# for the step at which to stop.
#
# Versions: jax 0.10.2, orbax-checkpoint 0.12.8, Python 3.11, Linux.
# `reached_preemption_sync_point(n)` is to be called with growing numbers; after
# SIGTERM the hosts agree on the number that follows the last one asked with. A
# CheckpointManager asks as well, with the step that it saves. Where the loop
# counts from another origin (its calls, or microbatches), the number agreed on
# has passed already, and no call is ever told to stop.
# Expected: the same answer with and without a save before the signal.
# Seen (asked with 100, then SIGTERM, then asked with 101 to 199):
#   no checkpoint saved: stop at [101]
#   step 3 saved: stop at []
# Exits with 1 when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
cat > "$folder/stops.py" <<'EOF'
import os
import signal
import socket
import sys
import tempfile
import time

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

with socket.socket() as free:
  free.bind(("127.0.0.1", 0))
  port = free.getsockname()[1]
jax.distributed.initialize(f"127.0.0.1:{port}", 1, 0)
asked = multihost_utils.reached_preemption_sync_point
asked(100)
if sys.argv[1] == "save":
  with ocp.CheckpointManager(tempfile.mkdtemp(dir=sys.argv[2])) as manager:
    manager.save(3, args=ocp.args.StandardSave({"a": np.zeros(3)}))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)  # The signal is looked for once a second.
print([number for number in range(101, 200) if asked(number)], flush=True)
os._exit(0)
EOF
run() { timeout 120 "$folder/venv/bin/python" "$folder/stops.py" "$1" "$folder" \
  2> "$folder/log" || { cat "$folder/log" >&2; exit 1; }; }
without=$(run none)
with=$(run save)
echo "no checkpoint saved: stop at $without"
echo "step 3 saved: stop at $with"
[ "$without" = "[101]" ] && [ "$with" = "[]" ]

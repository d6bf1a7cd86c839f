"""What a process that reaches a Ray's port learns from it."""

from __future__ import annotations

import os
import subprocess
import sys

_ASK = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, 10)))
"""


def answers(address: str, **environment: str) -> bool:
    """Whether the Ray at host:port tells its keys to a process with these variables of Ray and no others."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    asked = subprocess.run([sys.executable, "-c", _ASK, address], env=plain | environment, text=True,
                           capture_output=True, check=False, timeout=120)
    assert asked.returncode == 0 or "token" in asked.stderr.lower(), asked.stderr
    return asked.returncode == 0 and int(asked.stdout) > 0

"""Every benchmark, one after another, each in a process of its own: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run the named benchmarks, or all; the number of failed ones is the exit code."""
    names = sys.argv[1:] or sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])
                                   if not module.name.startswith("_"))
    failed = []
    for name in names:
        print(f"\n=== {name} " + "=" * (72 - len(name)), flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())

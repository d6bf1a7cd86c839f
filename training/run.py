"""The entry of jobs: `python -m training.run --config FILE [key.path=value ...]`.

    ray job submit --working-dir . -- python -m training.run --config configs/train/es.yaml
"""

from __future__ import annotations

import sys

from algospace.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()

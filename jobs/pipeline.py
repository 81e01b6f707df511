r"""What `ray job submit` runs: the command line, on the cluster the job was submitted to.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/pipeline.py run configs/cluster-gpu.yaml --run-dir /mnt/shared/runs/first
"""

import os
import sys
from pathlib import Path

# Under `ray job submit --working-dir .` this is the uploaded checkout: it comes before the image's own copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Hands the arguments to `lm-mixup`."""
    os.environ.setdefault("RAY_ADDRESS", "auto")
    from lm_mixup.cli import main as lm_mixup

    lm_mixup()


if __name__ == "__main__":
    main()

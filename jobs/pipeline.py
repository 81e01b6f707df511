r"""What `ray job submit` runs: the command line, on the cluster the job was submitted to.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/pipeline.py run configs/cluster-gpu.yaml --run-dir /mnt/shared/runs/first

From an image that holds the code, without a working directory:

ray job submit --address http://HEAD:8265 -- \
    python /opt/lm_mixup/jobs/pipeline.py run /opt/lm_mixup/configs/cluster-gpu.yaml \
    --run-dir /mnt/shared/runs/first

Submitted again with the same run directory it goes on where it stopped. The other jobs here are single verbs.
"""

import os
import sys
from pathlib import Path

# Under `ray job submit --working-dir .` this is the uploaded checkout: it comes before the image's own copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def lm_mixup(*arguments: str) -> None:
    """Runs `lm-mixup` with these arguments on the job's cluster; ends the process with its exit status."""
    os.environ.setdefault("RAY_ADDRESS", "auto")
    from lm_mixup.cli import main

    sys.argv = ["lm-mixup", *arguments]  # what run.json names, and what would do the same without a job
    main()


if __name__ == "__main__":
    lm_mixup(*sys.argv[1:])

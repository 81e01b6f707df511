r"""A pool becomes a training set: the stages of `augment`.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/augment.py configs/cluster-gpu.yaml --run-dir /mnt/shared/runs/first

Takes the options of `lm-mixup augment`. The distiller is that of the run directory, or
what `augment.policy` names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jobs.pipeline import lm_mixup

if __name__ == "__main__":
    lm_mixup("augment", *sys.argv[1:])

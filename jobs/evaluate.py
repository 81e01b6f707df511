r"""What the training set is worth: the stages of `evaluate`.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/evaluate.py configs/cluster-gpu.yaml --run-dir /mnt/shared/runs/first

Takes the options of `lm-mixup evaluate`. Needs what jobs/augment.py writes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jobs.pipeline import lm_mixup

if __name__ == "__main__":
    lm_mixup("evaluate", *sys.argv[1:])

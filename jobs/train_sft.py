r"""The cold start: SFT of the policy on MIXTURE.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/train_sft.py configs/cluster-gpu.yaml --run-dir /mnt/shared/runs/first

Takes the options of `lm-mixup train`. Needs what jobs/build_mixture.py writes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jobs.pipeline import lm_mixup

if __name__ == "__main__":
    lm_mixup("train", *sys.argv[1:], "--until", "sft")

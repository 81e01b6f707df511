r"""MIXTURE from passages: the stages of `build`.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/build_mixture.py configs/cluster-gpu.yaml --run-dir /mnt/shared/runs/first

Takes the options of `lm-mixup build`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from jobs.pipeline import lm_mixup

if __name__ == "__main__":
    lm_mixup("build", *sys.argv[1:])

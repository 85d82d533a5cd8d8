"""A command line of jaxptft in which one process never gets the batch of a step.

python experiments/reliability/workers/stalled.py PROCESS STEP pretrain images ...
"""

import os
import sys
import time

from jaxptft import data
from jaxptft.cli import main

process, place, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
inner = data.ImageBatches.batch_at


def stalled(self: data.ImageBatches, step: int) -> dict:
    if step == place and os.environ.get("JAXPTFT_PROCESS", "0") == process:
        time.sleep(3600)
    return inner(self, step)


data.ImageBatches.batch_at = stalled
sys.exit(main(command))

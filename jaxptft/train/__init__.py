"""How a model learns: the step, the same on any number of devices, and the loop around it."""

from jaxptft.train.background import copied_to_host
from jaxptft.train.checkpoint import CheckpointStore, DamagedCheckpoint, fingerprint, verify
from jaxptft.train.dispatch import Together, several
from jaxptft.train.evaluate import Evaluation, evaluate, make_evaluator
from jaxptft.train.fisher import diagonal_fisher, drawn_labels
from jaxptft.train.journal import Journal
from jaxptft.train.loop import Best, LoopState, Schedule, Stage, fit
from jaxptft.train.parallel import (
    axis_of,
    compile_step,
    jit_step,
    made_spread,
    make_mesh,
    mapped_step,
    own_rows,
    pad_rows,
    pmap_step,
    replicate,
    shard,
    shard_together,
    spread,
    spread_shardings,
)
from jaxptft.train.processes import (
    Agreement,
    Bulletin,
    connect,
    from_first,
    is_first,
    missing_processes,
    to_host,
    value_from_first,
)
from jaxptft.train.progress import Progress
from jaxptft.train.restore import newest_whole, restore
from jaxptft.train.side_by_side import SideBySide
from jaxptft.train.state import State, create_state
from jaxptft.train.step import make_step
from jaxptft.train.stop import StopFlag, Stopped
from jaxptft.train.watchdog import Watchdog

__all__ = [
    "Agreement",
    "Best",
    "Bulletin",
    "CheckpointStore",
    "DamagedCheckpoint",
    "Evaluation",
    "Journal",
    "LoopState",
    "Progress",
    "Schedule",
    "SideBySide",
    "Stage",
    "State",
    "StopFlag",
    "Stopped",
    "Together",
    "Watchdog",
    "axis_of",
    "compile_step",
    "connect",
    "copied_to_host",
    "create_state",
    "diagonal_fisher",
    "drawn_labels",
    "evaluate",
    "fingerprint",
    "fit",
    "from_first",
    "is_first",
    "jit_step",
    "made_spread",
    "make_evaluator",
    "make_mesh",
    "make_step",
    "mapped_step",
    "missing_processes",
    "newest_whole",
    "own_rows",
    "pad_rows",
    "pmap_step",
    "replicate",
    "restore",
    "several",
    "shard",
    "shard_together",
    "spread",
    "spread_shardings",
    "to_host",
    "value_from_first",
    "verify",
]

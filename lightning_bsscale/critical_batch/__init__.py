"""The critical batch by branching: short trainings from one checkpoint at several batches, compared on held-out data.

`theory/branching.py` says what is measured and how it is judged. Here the branches are made, each by a Trainer of its
own: the same state, the same examples in the same order, the learning rate by the rule, no scheduler (a branch is a
moment of the training).
"""

from lightning_bsscale.critical_batch.measure import measure_critical_batch
from lightning_bsscale.critical_batch.probe import Probe, ProbeError

__all__ = ["Probe", "ProbeError", "measure_critical_batch"]

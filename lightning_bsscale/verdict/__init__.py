"""What a training found, why, and what to change next: from a run in progress or from its journal, in words."""

from lightning_bsscale.verdict.facts import RunFacts, facts_of_run, read_facts
from lightning_bsscale.verdict.verdict import Verdict, verdict_of

__all__ = ["RunFacts", "Verdict", "facts_of_run", "read_facts", "verdict_of"]

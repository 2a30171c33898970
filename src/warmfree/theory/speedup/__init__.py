"""How much faster a warmup is than the best schedule that never rises: the experiments, and what they find.

`run_speedup` runs them all; each is also a function of its own. Everything is measured on functions of ours, on which
the theory's constants are exact; `docs/theory-speedup.md` has the numbers.
"""

from warmfree.theory.speedup.errors import error_after
from warmfree.theory.speedup.gap_steps import steps_by_gap
from warmfree.theory.speedup.law import fit_law
from warmfree.theory.speedup.mistakes import mistakes
from warmfree.theory.speedup.population import population_steps
from warmfree.theory.speedup.power import power_laws, power_steps
from warmfree.theory.speedup.results import (
    ErrorRow,
    Errors,
    GapSteps,
    Law,
    Mistake,
    Mistakes,
    PopulationRow,
    PopulationSteps,
    PowerRow,
    Speedup,
    StepsRow,
)
from warmfree.theory.speedup.run import NOISES, run_speedup

__all__ = [
    "NOISES",
    "ErrorRow",
    "Errors",
    "GapSteps",
    "Law",
    "Mistake",
    "Mistakes",
    "PopulationRow",
    "PopulationSteps",
    "PowerRow",
    "Speedup",
    "StepsRow",
    "error_after",
    "fit_law",
    "mistakes",
    "population_steps",
    "power_laws",
    "power_steps",
    "run_speedup",
    "steps_by_gap",
]

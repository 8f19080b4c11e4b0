"""Intervals, tests, verdicts, each with its citation."""

from hottune.stats.contest import FIRST_LOOK, FIXED_LEVEL, LOOKING_LEVEL, Contest
from hottune.stats.intervals import PairedChange, paired_change, precise_enough, smallest_permutation_n
from hottune.stats.multiple import holm, holm_changes
from hottune.stats.notes import NoteCode, first_run_slower, note
from hottune.stats.order import interleaved
from hottune.stats.outliers import modified_z_scores, outliers
from hottune.stats.recommend import Recommendation, recommend
from hottune.stats.unpaired import unpaired_change

__all__ = [
    "FIRST_LOOK",
    "FIXED_LEVEL",
    "LOOKING_LEVEL",
    "Contest",
    "NoteCode",
    "PairedChange",
    "Recommendation",
    "first_run_slower",
    "holm",
    "holm_changes",
    "interleaved",
    "modified_z_scores",
    "note",
    "outliers",
    "paired_change",
    "precise_enough",
    "recommend",
    "smallest_permutation_n",
    "unpaired_change",
]

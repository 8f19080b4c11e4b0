"""Which settings set the best trials of the search apart, from the report's trials alone (PED-ANOVA)."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.report.schema import Report
from hottune.report.wording import objective_axis

#: Fewer measured placements tell nothing.
LEAST_PLACEMENTS = 8
#: Of fewer, the setting that decides came out on top in 9 of 10 made-up searches (14 placements) or less.
FEW_PLACEMENTS = 20
#: What counts as the best ones: this share of them.
BEST = 0.25
#: Settings that the search varies, as people call them; hot_k stands for the share of the room it takes.
SETTINGS = {
    "n_cpu_moe": "layers on the CPU",
    "hot_k": "cached experts",
    "ubatch": "micro-batch",
    "threads": "threads",
    "policy": "policy",
    "rebalance_interval": "interval",
    "shared_budget": "shared budget",
    "prefill_bypass": "bypass",
}
_UNORDERED = ("policy", "shared_budget")


@dataclass(frozen=True)
class Importance:
    """Shares of all settings that varied, largest first, in sum 1; or why there are none."""

    shares: dict[str, float]
    #: Settings that every trial had alike.
    constant: list[str]
    n_placements: int
    why_not: str = ""


def importance(report: Report) -> Importance:
    """Return how much each setting sets the best quarter of the placements with a cache apart from all.

    The divergence of each setting's distribution among the best from that among all, as a share of the sum:
    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023, arxiv.org/abs/2304.10255), as Optuna has it. Trials of
    one placement count once, by their mean.
    """
    field, _ = objective_axis(report)
    values: dict[Placement, list[float]] = defaultdict(list)
    for trial in report.trials:
        if isinstance(trial.outcome, Measurement) and trial.placement.hot_k > 0 and not trial.placement.fit:
            values[trial.placement].append(getattr(trial.outcome, field))
    tried, means = list(values), [fmean(found) for found in values.values()]
    varied = [name for name in SETTINGS if len({getattr(one, name) for one in tried}) > 1]
    constant = [SETTINGS[name] for name in SETTINGS if name not in varied]
    why_not = ""
    if len(tried) < LEAST_PLACEMENTS:
        why_not = f"{len(tried)} placements with a cache were measured, and it takes {LEAST_PLACEMENTS}"
    elif not varied:
        why_not = "all placements with a cache had the same settings"
    elif len(set(means)) == 1:
        why_not = "all placements with a cache were equally good"
    if why_not:
        return Importance({}, constant, len(tried), why_not)
    shares = _ped_anova(tried, [mean if field == "turn_s" else -mean for mean in means], varied)
    return Importance({SETTINGS[name]: part for name, part in shares.items()}, constant, len(tried))


def _ped_anova(tried: Sequence[Placement], costs: Sequence[float], varied: Sequence[str]) -> dict[str, float]:
    # Imported on use: a report without a search needs no Optuna.
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="minimize")
        known = {name: sorted({getattr(one, name) for one in tried}) for name in varied}
        # The rank of a value, not the value: in gaps that nothing fell into, densities are next to 0, and so
        # any setting with few values far apart would look important.
        distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values)
            if name in _UNORDERED
            else IntDistribution(0, len(values) - 1)
            for name, values in known.items()
        }
        for placement, cost in zip(tried, costs, strict=True):
            params = {
                name: getattr(placement, name)
                if name in _UNORDERED
                else values.index(getattr(placement, name))
                for name, values in known.items()
            }
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=cost))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST))
    finally:
        optuna.logging.set_verbosity(told)
    return dict(sorted(found.items(), key=lambda item: (-round(item[1], 9), item[0])))

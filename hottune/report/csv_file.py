"""The arms as CSV, one row an arm, for spreadsheets and plots."""

from __future__ import annotations

from typing import Any

import pandas as pd

from hottune.report import wording
from hottune.report.schema import Report


class CsvRenderer:
    """Flat columns: the run, the arm, its placement, its numbers, its changes against the best baseline."""

    def render(self, report: Report) -> str:
        """Return the arms as CSV with a header line; a missing number is an empty field."""
        text: str = arms_frame(report).to_csv(index=False, lineterminator="\n")
        return text


def arms_frame(report: Report) -> pd.DataFrame:
    """Return one row an arm."""
    return pd.DataFrame([_run_columns(report) | row for row in _arm_rows(report)])


def _run_columns(report: Report) -> dict[str, Any]:
    return {
        "study": report.study,
        "created": report.created.isoformat(),
        "model": report.model.name,
        "quant": report.model.shape.quant,
        "synthetic": report.model.synthetic,
        "gpu": "; ".join(gpu.name for gpu in report.machine.gpus),
        "virtual_gpu": wording.is_virtual(report),
        "llama_build": report.engine.llama_build,
        "workload": report.workload.name,
        "ceiling_mib": report.ceiling_mib,
    }


def _arm_rows(report: Report) -> list[dict[str, Any]]:
    rows = []
    for arm in report.arms:
        row: dict[str, Any] = {
            "arm": arm.name,
            "winner": report.winner is not None and arm.name == report.winner.arm,
            "outcome": arm.outcome,
            "detail": arm.detail,
            "replicates": len(arm.replicates),
            "measured": len(wording.measurements(arm)),
            **arm.placement.model_dump(mode="json"),
            **{name: getattr(arm, name) for name in _NUMBERS},
            "versus_arm": arm.versus_arm,
        }
        for metric, change in wording.versus(arm).items():
            row |= {
                f"versus_{metric}": change.ratio,
                f"versus_{metric}_low": change.low,
                f"versus_{metric}_high": change.high,
                f"versus_{metric}_verdict": change.verdict,
            }
        rows.append(row)
    return rows


_NUMBERS = (
    "prefill_tok_s",
    "decode_tok_s",
    "ttft_ms",
    "turn_s",
    "vram_peak_mib",
    "vram_source",
    "hit_rate",
    "search_decode_tok_s",
    "search_turn_s",
    "text_equal",
    "kld_to_all_cpu",
    "same_top_token",
    "scored_positions",
    "cold_turn_s",
    "cold_decode_tok_s",
    "cold_first_100_tok_s",
    "cold_later_tok_s",
    "bound_decode_tok_s",
    "bound_share",
)

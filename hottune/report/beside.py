"""Lines that stand beside the speeds: quality, cold start, and how far the machine could go."""

from __future__ import annotations

from hottune.report.schema import Arm, Report
from hottune.report.wording import NOTHING, number, share

QUALITY, COLD, ROOFLINE = "Quality against all-cpu", "Cold start (empty cache)", "Roofline"
LEAST_KLD = 1e-4


def kld(arm: Arm) -> str:
    """Return the arm's divergence from all-cpu in nats: `0.0031`, `< 0.0001`, `0`."""
    value = arm.kld_to_all_cpu
    if arm.outcome != "measurement" or value is None:
        return NOTHING
    if 0 < value < LEAST_KLD:
        return f"< {LEAST_KLD:.4f}"
    return f"{value:.4f}" if value else "0"


def quality(report: Report) -> list[str]:
    """Return how near each arm's next tokens are to all-cpu's, and how near all-cpu is to itself."""
    unscored = [
        f"{arm.name}: not scored, for it does not tell next-token probabilities as llama.cpp does"
        for arm in _measured(report)
        if arm.placement.engine and arm.kld_to_all_cpu is None
    ]
    scored = [
        f"{arm.name}{', again' * (arm.name == 'all-cpu')}: KL divergence {kld(arm)} nats a position, "
        f"same top token at {share(arm.same_top_token)} of {arm.scored_positions} positions"
        for arm in _measured(report)
        if arm.kld_to_all_cpu is not None
    ]
    return [*scored, *unscored] if scored else []


def cold_start(report: Report) -> list[str]:
    """Return what the first request to a fresh server got, beside what later ones get."""
    lines = []
    for arm in _measured(report):
        if arm.cold_turn_s is None:
            continue
        line = (
            f"{arm.name}: first turn {number(arm.cold_turn_s)} s (warm {number(arm.turn_s)}), "
            f"decode {number(arm.cold_decode_tok_s)} tok/s (warm {number(arm.decode_tok_s)})"
        )
        if arm.cold_first_100_tok_s is not None:
            first, later = number(arm.cold_first_100_tok_s), number(arm.cold_later_tok_s)
            line += f"; its first 100 tokens at {first} tok/s, the rest at {later}"
        lines.append(line)
    return lines


def roofline(report: Report) -> list[str]:
    """Return the share of the machine's bound that each arm's decoding reached, or why there is no bound."""
    if report.roofline is None:
        return []
    found = report.roofline.bandwidths
    if found is None:
        return [f"No bound: {report.roofline.reason or 'no bandwidths were measured'}."]
    lines = [
        f"{arm.name}: decode {number(arm.decode_tok_s)} of at most {number(arm.bound_decode_tok_s)} tok/s "
        f"at the measured hit rate, {share(arm.bound_share)}"
        for arm in _measured(report)
        if arm.bound_decode_tok_s is not None
    ]
    bandwidths = (
        f"Bandwidths, GB/s: RAM to CPU {number(found.cpu)} ({number(found.cpu_overlapped)} beside uploads), "
        f"VRAM {number(found.hbm)}, PCIe {number(found.pcie_h2d)}"
    )
    return [*lines, bandwidths]


def _measured(report: Report) -> list[Arm]:
    return [arm for arm in report.arms if arm.outcome == "measurement"]

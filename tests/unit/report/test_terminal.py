import pytest
import report_builder as build
from rich.cells import cell_len

from hottune.report import Format, render
from hottune.report.terminal import TerminalRenderer


def shown(report, width=100, color=False) -> str:
    return render(report, Format.TERMINAL, width=width, color=color)


def test_the_answer_comes_first():
    lines = shown(build.report()).splitlines()
    assert "Use this: hot" in lines[1]
    assert "prefill slower −21% ±2%" in shown(build.report(), width=160)


def test_the_virtual_gpu_is_told_before_anything_else():
    assert shown(build.virtual_report()).startswith("Virtual GPU")
    assert "Virtual GPU" not in shown(build.report())


def test_every_arm_stands_with_its_outcome_and_failures_say_why():
    text = shown(build.report())
    assert "all-cpu, 3 runs" in text
    assert "fit, not engaged" in text
    assert "fit: not engaged. --fit placed nothing" in text


def test_out_of_memory_arm_has_no_number_in_its_row():
    text = shown(build.report(arms=[build.all_cpu(), build.out_of_memory_arm()], winner=None))
    row = next(line for line in text.splitlines() if "layers, out of memory" in line)
    assert not any(character.isdigit() for character in row)
    assert "No recommendation" in text


def test_prefill_loss_to_layer_offload_is_in_the_comparison():
    row = next(line for line in shown(build.report(), 120).splitlines() if "hot / layers" in line)
    assert row.split("  ")[1:] != []
    assert "faster +10% ±4%" in row
    assert "slower −21% ±2%" in row
    assert "can't tell +3.4% ±4.6%" in row


def test_proof_warnings_and_setup_are_shown():
    text = " ".join(shown(build.report(), width=140).split())
    assert "48 layers × 22 experts (2 GiB), 51.0% hits (any 22 experts: 17.2%), 1,200 uploads (3 GiB)" in text
    assert "Run again with more replicates." in text
    assert "Example GPU 24GB, 24 GiB" in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_only_the_command_is_wider_than_the_terminal(width):
    report = build.report()
    wide = [line for line in shown(report, width).splitlines() if cell_len(line) > width]
    assert wide == [report.winner.command]


def test_width_stays_between_80_and_160():
    assert TerminalRenderer(width=20, color=False).width == 80
    assert TerminalRenderer(width=500, color=False).width == 160


def test_colours_only_when_asked_and_no_color_wins(monkeypatch):
    assert "\x1b[" in shown(build.report(), color=True)
    assert "\x1b" not in shown(build.report(), color=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in render(build.report(), Format.TERMINAL, width=100)
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[" in render(build.report(), Format.TERMINAL, width=100)


def test_fewer_experts_in_vram_than_asked_for_are_told():
    on = build.engagement(hot=build.hot_stats(slots=20, fallback_nodes=7))
    arm = build.arm("hot", build.placement(hot_k=22), [build.measurement(engagement=on)])
    text = " ".join(shown(build.report(arms=[arm]), width=140).split())
    assert "20 experts of 22 asked for" in text
    assert "7 nodes fell back to the CPU" in text


def test_what_fit_chose_is_the_proof_of_its_arm():
    text = shown(build.report(arms=[build.fit_measured()], winner=None))
    assert "fit: fit chose 49 of 49 layers, 2 tensor overrides" in text


def test_a_placement_that_wraps_stays_below_its_arm():
    report = build.report()
    more = {"policy": "window", "shared_budget": True, "prefill_bypass": 8, "parallel": 4}
    arm = report.arms[-1].model_copy(update={"placement": report.arms[-1].placement.model_copy(update=more)})
    lines = shown(report.model_copy(update={"arms": [*report.arms[:-1], arm]}), width=80).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("  ncmoe 48 + hot 22"))
    assert "np 4" not in lines[begin]
    end = next(number for number in range(begin, len(lines)) if "np 4" in lines[number])
    assert all(line.startswith("  ") for line in lines[begin : end + 1])

"""`python -m bench.device MODEL`: measure, write a result file, print its table."""

from __future__ import annotations

import sys

from bench.device import setting
from bench.device.options import parse
from bench.device.sitting import Pace, Sitting
from bench.device.table import markdown
from hottune.cli.common import cache_dir, make_progress
from hottune.errors import HottuneError


def main(arguments: list[str]) -> int:
    """Run one sitting; return the exit status. Everything measured is in the file, however it ends."""
    options = parse(arguments)
    pace = Pace(options.budget_s)
    progress = make_progress()
    try:
        settled = setting.settle(options, cache_dir(), progress)
        report = Sitting(settled, pace, progress.say).run()
    except HottuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"stopped; what was measured is in {options.out}", file=sys.stderr)
        return 130
    print(markdown(report), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

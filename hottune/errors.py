"""Every fatal error of hottune, each with its own exit code.

A message says what happened, the probable cause, and the next step. Outcomes of a trial (out of memory,
crash, time-out) are not errors: see `outcomes.py`.

Exit codes that are not errors of ours: 0 done, 1 a bug in hottune, 2 wrong usage (from the argument
parser), 130 interrupted by Ctrl-C, 143 ended by SIGTERM.
"""

from __future__ import annotations

from typing import ClassVar


class HottuneError(Exception):
    """Base of all fatal errors.

    Args:
        what: what happened, one sentence, naming the file, repository or tool.
        why: the probable cause ("" when `what` already says it).
        next_step: what the user can do now.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        self.what = what
        self.why = why
        self.next_step = next_step
        super().__init__(" ".join(part for part in (what, why, next_step) if part))


# --- models: 10-19 -----------------------------------------------------------------------------------


class ModelNotFoundError(HottuneError):
    """The MODEL argument names a file that does not exist or cannot be read."""

    exit_code = 10


class ModelCorruptError(HottuneError):
    """The file is not a GGUF, or is truncated."""

    exit_code = 11


class NotMoeError(HottuneError):
    """The model is dense: it has no experts to place."""

    exit_code = 12


class RepoNotFoundError(HottuneError):
    """The Hugging Face repository or the wanted quantization in it does not exist (or needs a token)."""

    exit_code = 13


class DownloadError(HottuneError):
    """A download failed half-way or the hub cannot be reached; running again resumes it."""

    exit_code = 14


# --- engine build: 20-29 -----------------------------------------------------------------------------


class NoCompilerError(HottuneError):
    """No C++ compiler (or no CUDA/HIP compiler for the wanted back-end) on PATH."""

    exit_code = 20


class NoSpaceError(HottuneError):
    """Not enough free disk space for the source, the build, a model, or what a command writes."""

    exit_code = 21


class ChecksumError(HottuneError):
    """A downloaded source archive does not have the pinned sha256."""

    exit_code = 22


class IndexUnreachableError(HottuneError):
    """The configured Python index cannot be reached or does not have the pinned source package."""

    exit_code = 23


class BuildFailedError(HottuneError):
    """CMake or the compiler failed; the message names the log file and shows its last error."""

    exit_code = 24


class UnsafeArchiveError(HottuneError):
    """An archive member would be written outside the target folder, or is a link or a device."""

    exit_code = 25


class ApiMismatchError(HottuneError):
    """The llama.cpp given speaks another GGML_BACKEND_API_VERSION (or is another build) than our device."""

    exit_code = 26


class SourceInvalidError(HottuneError):
    """`--source`, `--git` or `--llama-bin` does not lead to a usable llama.cpp."""

    exit_code = 27


class EngineFileError(HottuneError):
    """An engine file (`--engine`) is not there, is not TOML, or says what no engine file can say."""

    exit_code = 28


# --- server: 30-39 -----------------------------------------------------------------------------------


class PortTakenError(HottuneError):
    """The port that the user asked for is taken by another process."""

    exit_code = 30


class ServerError(HottuneError):
    """llama-server did not serve where no study can record it as an outcome (`bench`, `trace`, `serve`)."""

    exit_code = 31


class NotEngagedError(HottuneError):
    """The asked-for arrangement did not take effect, so nothing was measured (`bench`) or served."""

    exit_code = 32


class EndpointError(HottuneError):
    """An OpenAI-compatible endpoint cannot be measured: it is not there, refuses, or does not stream."""

    exit_code = 33


# --- plan: 40-49 -------------------------------------------------------------------------------------


class CeilingTooSmallError(HottuneError):
    """The VRAM ceiling cannot hold even the parts of the model that never go to the CPU."""

    exit_code = 40


class BackendUnavailableError(HottuneError):
    """The asked-for back-end (`--backend cuda`, ...) has no device or no tool chain here."""

    exit_code = 41


class BadSettingError(HottuneError):
    """An option's value makes no sense together with the model or the machine."""

    exit_code = 42


class BallastError(HottuneError):
    """The VRAM above the ceiling cannot be held back: others use the card, or the driver refuses."""

    exit_code = 43


# --- study: 50-59 ------------------------------------------------------------------------------------


class StorageError(HottuneError):
    """The study's storage (SQLite file, PostgreSQL) cannot be opened or written."""

    exit_code = 50


class StudyNotFoundError(HottuneError):
    """No study of that name or at that path."""

    exit_code = 51


class NothingMeasuredError(HottuneError):
    """Every placement failed, so there is no winner; the outcomes are in the study."""

    exit_code = 52


class StudyBusyError(HottuneError):
    """Another live hottune process is running this very study, or measures on the same GPU."""

    exit_code = 53


class MachineDiffersError(HottuneError):
    """The study holds measurements of another kind of machine."""

    exit_code = 54


class ExtraMissingError(HottuneError):
    """A command needs a package that comes with one of hottune's extras, and it is not installed."""

    exit_code = 55


# --- report: 60-69 -----------------------------------------------------------------------------------


class BadResultError(HottuneError):
    """A result file cannot be read: not JSON, not ours, or of a newer schema."""

    exit_code = 60


class NotComparableError(HottuneError):
    """Results are not alike enough to be compared, or one has nothing to compare (`compare`)."""

    exit_code = 61


class RegressionError(HottuneError):
    """A result is slower than `--fail-below` allows (`compare`)."""

    exit_code = 62


# --- routing: 70-79 ----------------------------------------------------------------------------------


class BadTraceError(HottuneError):
    """A routing trace cannot be read: not there, no trace, of another version, or damaged."""

    exit_code = 70


class BadProfileError(HottuneError):
    """A profile of expert uses cannot be read, or is of another model."""

    exit_code = 71


def all_errors() -> list[type[HottuneError]]:
    """Return every error class, ordered by exit code (for documentation and the uniqueness test)."""
    return sorted(HottuneError.__subclasses__(), key=lambda error: error.exit_code)

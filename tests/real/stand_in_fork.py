"""A git repository that stands in for a fork of llama.cpp: its llama-server turns into the pinned build's.

It has knobs of its own: the flag `--fork-moe N` for `-ncmoe N`, the variable FORK_HOT_K for a cache, which
is then that of hottune's own device. So a real server serves a real model behind somebody else's flags.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(stand_in CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(llama-server server.cpp)
target_compile_definitions(llama-server PRIVATE REAL_SERVER="${REAL_SERVER}")
"""
SOURCE = r"""
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
int main(int argc, char ** argv) {
    std::vector<char *> words = { (char *) REAL_SERVER };
    for (int i = 1; i < argc; i++) {
        words.push_back(strcmp(argv[i], "--fork-moe") == 0 ? (char *) "-ncmoe" : argv[i]);
    }
    words.push_back(nullptr);
    const char * hot_k = getenv("FORK_HOT_K");
    if (argc > 2) {
        printf("fork: LINE %s\n", hot_k ? hot_k : "none");
        fflush(stdout);
    }
    if (hot_k) {
        setenv("GGML_HOT_K", hot_k, 1);
        setenv("GGML_HOT_HEADROOM_MIB", "0", 1);
    }
    execv(REAL_SERVER, words.data());
    perror(REAL_SERVER);
    return 1;
}
"""
ARGUMENTS = """\
always = ["-lv", "4", "-fit", "off", "--offline", "--no-cache-prompt", "--cache-ram", "0"]
model = ["-m", "{model}"]
n_gpu_layers = ["-ngl", "{n_gpu_layers}"]
n_cpu_moe = ["--fork-moe", "{n_cpu_moe}"]
context = ["-c", "{context}", "-np", "1"]
batch = ["-b", "{batch}"]
ubatch = ["-ub", "{ubatch}"]
threads = ["-t", "{threads}", "-tb", "{threads}"]
load_mode = { none = ["--load-mode", "none"], mmap = ["--load-mode", "mmap"] }
gpu = { virtual = ["--no-repack"], real = [], none = [] }
port = ["--host", "{host}", "--port", "{port}"]
"""


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *who, "-C", str(folder), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


class Repository:
    """The stand-in for a remote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        git(folder, "init")

    def commit(self, line: str = "hot cache K", source: str = SOURCE) -> str:
        """Commit a state of the fork and return its hash; `line` is what its log says."""
        (self.folder / "CMakeLists.txt").write_text(CMAKE)
        (self.folder / "server.cpp").write_text(source.replace("LINE", line))
        git(self.folder, "add", ".")
        git(self.folder, "commit", "--allow-empty", "-m", "state")
        return git(self.folder, "rev-parse", "HEAD")


def engine_file(path: Path, repository: Repository, commit: str, real_server: Path, **facts: Any) -> Path:
    """Write an engine file; `kind`, `proof` and `environment` may be given."""
    kind = facts.get("kind", "layers")
    proof = facts.get("proof", r"fork: hot cache K {hot_k}$" if kind == "hot" else r"fork: hot cache K none")
    knobs = 'FORK_HOT_K = "{hot_k}"' if kind == "hot" else ""
    path.write_text(
        f"""\
name = "{path.stem}"
git = "{repository.folder}"
ref = "{commit}"
[build]
options = ["REAL_SERVER={real_server}"]
[build.backends]
cpu = []
[supports]
plug_in = true
[placement]
kind = "{kind}"
[arguments]
{ARGUMENTS}
[environment]
{knobs}
[proof]
lines = ['{proof}']
[answers]
probabilities = true
"""
    )
    return path

"""Other engines: forks of llama.cpp as arms, each described by a small TOML file (docs/engines.md)."""

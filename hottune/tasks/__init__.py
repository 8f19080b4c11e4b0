"""The steps of a run, used by `hottune.workflow` and by single commands."""

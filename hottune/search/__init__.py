"""Space, baselines, the Optuna study, confirmation."""

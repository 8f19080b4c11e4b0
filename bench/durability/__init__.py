"""Does a study survive? Runs are killed at random moments, restarted, and compared with an undisturbed one."""

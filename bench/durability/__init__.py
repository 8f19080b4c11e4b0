"""Does a study survive? Runs are killed at random, restarted, and compared with an undisturbed one."""

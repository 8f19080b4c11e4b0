"""Controls of the verdicts: equal arms must not be told apart, and a gain of 5 % must be found."""

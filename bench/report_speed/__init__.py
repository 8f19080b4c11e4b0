"""How long `hottune report` takes on a large study."""

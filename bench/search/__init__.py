"""How well and how fast the search finds the best placement, on recorded and modelled landscapes."""

"""Tables I and II, Fig. 2, and adapter training against none."""

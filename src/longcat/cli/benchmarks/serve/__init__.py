"""`longcat bench serve`: our engine beside transformers' generate, and the load of a server."""

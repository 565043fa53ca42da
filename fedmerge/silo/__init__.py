"""A silo: its base, its rows, its training. It never meets the server; messages go between them."""

"""The server: the round loop, the guard, the roster and the run's folder."""

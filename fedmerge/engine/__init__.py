"""Runs a federation on one machine: in this process (`local`), or on Flower's SuperLink (`superlink`)."""

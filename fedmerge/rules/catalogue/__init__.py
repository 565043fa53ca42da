"""The finished rules, each one line of composition under its formula, defaults and reference.

Symbols, the same in every formula: tau_i the delta of client i (one tensor, one coordinate at a time), w_i
its raw weight, N the number of clients, n the number of coordinates, rho the density, lambda the scale.
"""

"""Studies: which rule, which knobs, is it worth it, and why. They conduct runs; no run knows of them."""

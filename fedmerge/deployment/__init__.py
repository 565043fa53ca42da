"""Cross-silo deployments: the parties' files, supervision, and probing (floor 7)."""

"""The tests mirror the package; each folder that shares code with another is a package."""

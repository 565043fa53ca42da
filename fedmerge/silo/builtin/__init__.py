"""What fedmerge brings along: a small base, and text that every Python carries."""

"""Questions asked of finished runs, and of many runs side by side."""

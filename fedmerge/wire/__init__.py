"""What leaves the process: adapter files, and the records that Flower carries."""

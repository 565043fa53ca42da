"""What is learned from runs and adapters that are there: compared, swept, inspected, reported."""

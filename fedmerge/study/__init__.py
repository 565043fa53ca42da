"""What is asked of runs: compared, swept, inspected, shown. Nothing below imports it."""

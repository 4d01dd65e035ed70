"""Public datasets: one dataset, one file."""

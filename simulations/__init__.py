"""Both sides on one machine: data sets, partitions, engines, scenarios, benchmarks."""

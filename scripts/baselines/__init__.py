"""What benchmarks and tests measure against: methods of peers, synthetic data."""

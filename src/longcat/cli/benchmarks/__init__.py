"""What `longcat bench` measures, and how: interleaved medians, and the machine they came from."""

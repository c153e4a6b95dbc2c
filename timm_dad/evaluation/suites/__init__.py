"""The suites that models are evaluated on: published benchmarks, own data sets, and suites derived from them."""

"""The suites that models are evaluated on: published benchmarks, own data sets, and what is made of them."""

"""Helpers for any other package: files, errors, logging, hashes, counts. It imports nothing from the project."""

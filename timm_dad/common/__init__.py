"""What any other package may use: files, errors, logging, hashes, counts. It imports nothing of the project."""

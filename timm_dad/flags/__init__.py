"""Flags and the objects they describe: the only place for argparse apart from the commands."""

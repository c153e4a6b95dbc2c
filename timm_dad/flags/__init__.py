"""Flags, and the objects that they ask for: the one home of argparse beside the commands."""

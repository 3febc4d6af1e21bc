"""Kinds of arguments that several benchmarks take."""

import argparse


def whole_number(text: str) -> int:
    """Return a whole number from 1 on; for the `type` of an argument."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} should be a whole number from 1 on")
    return int(text)

"""Kinds of arguments that several commands take."""

import argparse


def whole_number(text: str) -> int:
    """From 1 on; as the `type` of an argument."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} should be a whole number from 1 on")
    return int(text)

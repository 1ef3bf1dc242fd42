"""Codes from a dictionary: proximal gradients, coordinate descent, systems on supports."""

"""Fits that several processes share: who they are, how they add up, where they run."""

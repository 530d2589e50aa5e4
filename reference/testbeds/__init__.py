"""Offline data sets, tiny models and the one training loop. Equal seeds give bit-equal numbers on one machine."""

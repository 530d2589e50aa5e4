"""Litmus: put machine-learning papers to the test.

The harness declares papers as cards, plans cells, runs them isolated, keeps records,
judges claims from records and reports. It knows nothing of any paper.
"""

__version__ = "0.1.0"

"""Grids of runs that answer a question: arms, seeds, intervals, one table and one plot."""

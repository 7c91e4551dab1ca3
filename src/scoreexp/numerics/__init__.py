"""Numerical mathematics: linear algebra, differential equations, distributions with known scores."""

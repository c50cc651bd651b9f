"""Stochastic Frank-Wolfe: an optimizer of its own, which keeps weights in norm balls."""

from tenfold.optim.frank_wolfe.optimizer import FrankWolfe as FrankWolfe

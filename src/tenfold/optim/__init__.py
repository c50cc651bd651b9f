"""What happens inside an optimizer's step, for the methods that train: hooks, projections of weights in place."""

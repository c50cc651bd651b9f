"""What torch's optimizers call the state that they keep of a parameter, by how it goes with other coordinates."""

MEANS = ("momentum_buffer", "exp_avg")
"""Linear in the gradients."""
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "step_size")
"""Positive, and of the square of a coordinate."""
CENTRES = ("grad_avg",)
"""A mean that is subtracted from a mean square: it is forgotten at a cut, where the difference might turn negative."""

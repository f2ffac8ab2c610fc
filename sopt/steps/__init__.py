"""The two kinds of step, the loss they share, and the random numbers of each step."""

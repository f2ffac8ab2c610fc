"""What other trainers need to use the optimizers of :mod:`sopt.optim`; most need nothing."""

"""``sopt benchmark tiny``: every method on subjects that the bundled model has never seen."""

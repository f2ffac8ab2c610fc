"""Textual inversion: the embedding of a new word is trained, by backprop or forwards alone."""

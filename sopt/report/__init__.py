"""A page about a run that a person looks at rather than reads."""

"""The quality of personalization by the papers' protocol: datasets, prompts, metrics, benchmark."""

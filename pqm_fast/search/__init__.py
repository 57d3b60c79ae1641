"""Guided search: a policy writes steps, and a model chooses which of them to continue."""

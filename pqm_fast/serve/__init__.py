"""The reward server: `pqm-fast serve`."""

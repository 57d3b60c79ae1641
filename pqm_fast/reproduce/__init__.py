"""`pqm-fast reproduce`: a published protocol from its data to its table, in one command."""

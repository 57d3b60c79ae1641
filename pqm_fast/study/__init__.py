"""Whether a loss makes the better verifier: many trainings under equal conditions, `pqm-fast study`."""

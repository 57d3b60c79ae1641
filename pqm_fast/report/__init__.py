"""`pqm-fast report`: the results of training, evaluation and scoring as one HTML page that needs no network."""

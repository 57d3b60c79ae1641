"""`pqm-fast report`: what training, evaluation and scoring left in files, as one page that needs nothing else."""

"""`pqm-fast status`: what a run is doing, from its files alone. Nothing here loads torch, writes or waits."""

"""`pqm-fast probe-study`: heads of every loss on real hidden states under the same conditions, tested on other data."""

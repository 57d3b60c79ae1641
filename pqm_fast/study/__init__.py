"""`pqm-fast study`: train with every loss under the same conditions and compare their Best-of-N."""

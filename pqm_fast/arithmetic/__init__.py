"""The embedded arithmetic world, where every step label is known exactly, and the demo that trains on it.

problems -> policies (write solutions) -> tokenizer, models -> world (files) -> demo
"""

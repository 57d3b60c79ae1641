"""The processes of one command: joining them, what they tell each other on the host, and noticing that one is gone."""

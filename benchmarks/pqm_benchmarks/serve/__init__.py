"""The reward server under load, over loopback."""

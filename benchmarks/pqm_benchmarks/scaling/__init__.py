"""A simulation of many ranks: how long they wait for each other, and for the network. Needs no GPU."""

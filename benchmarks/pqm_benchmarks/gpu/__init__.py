"""Everything that is to be seen and measured on a GPU, in one command: stages -> run -> summary -> publish."""

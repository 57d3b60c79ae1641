"""All checks and measurements on a GPU in one command: stages -> run -> summary -> publish."""

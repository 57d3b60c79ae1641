"""Training steps at the sizes of real models: ours against three others, with one switch more at a time."""

"""What is simulated."""

RANKS = (8, 64, 256, 1024, 4096)
ACCUMULATIONS = (1, 2, 4, 8)
BUDGET = 16384  # tokens of a micro-batch: the trainer's own choice on a GPU
BUDGETS = (2048, 4096, 8192, 16384, 32768)
IDLE_SHAPES = ("Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen2.5-72B")
NETWORK_SHAPES = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-32B", "Qwen2.5-72B")
SHAPE = "Qwen2.5-7B"  # where one model stands for all
MANY = 1024  # ranks, where one number stands for all
GOAL = 0.02  # idle, up to MANY ranks

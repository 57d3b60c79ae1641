"""Published figures, for a reader to set beside those of a reproduction. They were measured under other conditions."""

from typing import NamedTuple


class Published(NamedTuple):
    """The share of questions solved, in percent, when a model chooses the solution."""

    conditions: str
    loss: str
    percent: float
    source: str


LLAMA = "MATH500, solutions of Llama-3-70B-Instruct; N is not stated in our source"
QWEN = "MATH500, N = 128, with Qwen2.5-3B"
PUBLISHED = (
    Published(LLAMA, "bce", 39.8, "PQM, arXiv 2410.11287"),
    Published(LLAMA, "rank", 51.4, "PQM, arXiv 2410.11287"),
    Published(QWEN, "rank", 55.8, "the re-run of PQM in CRM, arXiv 2509.26578"),
    Published(QWEN, "crm", 56.6, "CRM, arXiv 2509.26578"),
)

"""Runs a local Hugging Face model as a policy: requests are completed in batches by transformers' `generate`."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from pqm_fast.errors import PQMError, RecordError
from pqm_fast.model.device import pick_device
from pqm_fast.model.loading import quiet_transformers
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.sample.gumbel_noise import gumbel
from pqm_fast.sample.options import PolicyOptions
from pqm_fast.sample.policy import Completion, Outcome, Request, stop_texts, token_limit
from pqm_fast.sample.prompt import chat_format, write_prompt

PROGRESS_SECONDS = 0.5  # between progress messages within a batch


class LocalPolicy:
    """A causal language model from a folder or hub id. Raises PQMError if it cannot be loaded."""

    def __init__(self, path: str, options: PolicyOptions, show_progress: Callable[[str], Any] = lambda message: None):
        self.path, self.options, self.show_progress = path, options, show_progress
        self.device = pick_device(options.device)
        self.tokenizer = load_tokenizer(path)
        chat = options.prompt_format == "chat"
        self.prompt_format = chat_format(self.tokenizer, options.system) if chat else options.prompt_format
        default_dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        dtype = getattr(torch, default_dtype if options.dtype == "auto" else options.dtype)
        try:
            with quiet_transformers():
                model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        except Exception as error:  # the exceptions of transformers have no common class
            raise PQMError(f"{path}: no causal language model could be loaded: {error}") from error
        self.model = model.to(self.device).eval()
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        eos = model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        self.eos: list[int] = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        pad = self.tokenizer.pad_token_id
        self.pad: int = pad if pad is not None else self.eos[0] if self.eos else 0
        # `generate` would merge the model's settings (temperature, repetition penalty, ...) into ours: replace them
        self.model.generation_config = GenerationConfig(
            do_sample=False,  # the noise is already in the scores
            max_new_tokens=options.max_new_tokens,
            eos_token_id=self.eos or None,
            pad_token_id=self.pad,
            cache_implementation="static" if options.kv_cache == "static" else None,
        )
        self.batch: list[tuple[Request, list[int]]] = []
        self.refused: list[Outcome] = []

    def room(self) -> int:
        return self.options.parallel - len(self.batch) - len(self.refused)

    def submit(self, request: Request) -> None:
        prompt = write_prompt(self.prompt_format, request.question, request.steps, self.options.step_separator)
        ids = ids_before_a_step(self.tokenizer, prompt) if request.steps else list(self.tokenizer(prompt)["input_ids"])
        limit = token_limit(self.options, request)
        if self.context is not None and len(ids) + limit > self.context:
            message = (
                f"its prompt of {len(ids)} tokens and {limit} new ones do not fit the context of {self.path}, "
                f"{self.context} tokens; lower --max-new-tokens"
            )
            self.refused.append((request, RecordError(message, "prompt longer than the context")))
        else:
            self.batch.append((request, ids))

    def collect(self) -> list[Outcome]:
        outcomes, self.refused = self.refused, []
        while self.batch:
            fitting = self._fitting()
            outcomes += zip((request for request, _ in fitting), self._generate(fitting), strict=True)
            self.batch = [row for row in self.batch if row not in fitting]
        return outcomes

    def close(self) -> None:
        self.batch.clear()

    @torch.no_grad()
    def _generate(self, batch: Sequence[tuple[Request, list[int]]]) -> list[Completion]:
        longest = max(len(ids) for _, ids in batch)
        tokens = torch.tensor([[self.pad] * (longest - len(ids)) + ids for _, ids in batch])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for _, ids in batch])
        seeds = torch.tensor([_as_int64(request.seed) for request, _ in batch], device=self.device)
        try:
            with quiet_transformers():
                generated = self.model.generate(
                    input_ids=tokens.to(self.device),
                    attention_mask=mask.to(self.device),
                    logits_processor=self._logits_processors(seeds, longest),
                    stopping_criteria=self._stopping_criteria([request for request, _ in batch], longest),
                )
        except torch.OutOfMemoryError as error:
            raise PQMError(
                f"{self.path}: the device is out of memory with {len(batch)} completions at once; lower "
                "--parallel and run the command again"
            ) from error
        rows = generated[:, longest:].tolist()
        return [self._completion(request, row) for (request, _), row in zip(batch, rows, strict=True)]

    def _fitting(self) -> list[tuple[Request, list[int]]]:
        """The requests, or some of them, that fit the context together: `generate` goes on with a row that has ended
        until all have."""
        fitting: list[tuple[Request, list[int]]] = []
        prompt = limit = 0
        for request, ids in self.batch:
            sizes = max(prompt, len(ids)), max(limit, token_limit(self.options, request))
            if not fitting or self.context is None or sum(sizes) <= self.context:
                fitting.append((request, ids))
                prompt, limit = sizes
        return fitting

    def _logits_processors(self, seeds: torch.Tensor, prompt_length: int) -> LogitsProcessorList:
        processors = LogitsProcessorList()
        if self.options.temperature == 0:
            return processors
        if self.options.temperature != 1:
            processors.append(TemperatureLogitsWarper(float(self.options.temperature)))
        if self.options.top_p < 1:
            processors.append(TopPLogitsWarper(self.options.top_p))
        processors.append(_GumbelNoise(seeds, prompt_length))
        return processors

    def _stopping_criteria(self, requests: Sequence[Request], prompt_length: int) -> StoppingCriteriaList:
        limits = [token_limit(self.options, request) for request in requests]
        stops = [stop_texts(self.options, request) for request in requests]
        criteria: list[StoppingCriteria] = [_Progress(self.show_progress, max(limits), self.eos, prompt_length)]
        if min(limits) < self.options.max_new_tokens:
            criteria.append(_Limits(torch.tensor(limits, device=self.device), prompt_length))
        if any(stops):
            criteria.append(_StopTexts(self.tokenizer, stops, prompt_length))
        return StoppingCriteriaList(criteria)

    def _completion(self, request: Request, row: Sequence[int]) -> Completion:
        row = row[: token_limit(self.options, request)]  # what follows only fills up the batch
        end = next((i for i, token in enumerate(row) if token in self.eos), None)
        text = str(self.tokenizer.decode(list(row[:end]), skip_special_tokens=True))
        found = [(index, stop) for stop in stop_texts(self.options, request) if (index := text.find(stop)) >= 0]
        if not found:
            return Completion(text, finished=end is not None, tokens=len(row) if end is None else end + 1)
        index, stop = min(found, key=lambda pair: pair[0])
        tokens = len(row)
        while tokens > 1 and row[tokens - 1] == self.pad:  # `generate` fills up a row that has ended
            tokens -= 1
        goes_on = request.one_step and stop == self.options.step_separator
        return Completion(text[:index], finished=True, tokens=tokens, goes_on=goes_on)


class _GumbelNoise(LogitsProcessor):
    """Turns scores [B, vocabulary] into scores whose largest entry is a sample from their softmax."""

    def __init__(self, seeds: torch.Tensor, prompt_length: int):
        self.seeds, self.prompt_length = seeds, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        position = input_ids.shape[1] - self.prompt_length
        return scores + gumbel(self.seeds, position, scores.shape[1])  # type: ignore[return-value]


class _Progress(StoppingCriteria):
    """Stops nothing. `generate` calls it after every token; it reports the progress of the batch every half second."""

    def __init__(self, show: Callable[[str], Any], limit: int, eos: Sequence[int], prompt_length: int):
        self.show, self.limit, self.eos, self.prompt_length = show, limit, eos, prompt_length
        self.last_shown = time.monotonic()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **unused: Any) -> torch.BoolTensor:
        if time.monotonic() - self.last_shown >= PROGRESS_SECONDS:
            written = input_ids[:, self.prompt_length :]
            ended = int(torch.isin(written, torch.tensor(self.eos, device=written.device)).any(1).sum())
            self.show(f"token {written.shape[1]:,} of {self.limit:,}, {ended:,} of {len(written):,} ended")
            self.last_shown = time.monotonic()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]


class _Limits(StoppingCriteria):
    """Ends each row after its own number of new tokens, `limits` [B]."""

    def __init__(self, limits: torch.Tensor, prompt_length: int):
        self.limits, self.prompt_length = limits, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **unused: Any) -> torch.BoolTensor:
        return self.limits <= input_ids.shape[1] - self.prompt_length  # type: ignore[return-value]


class _StopTexts(StoppingCriteria):
    """Ends the rows that contain one of their stop texts. The criterion of transformers supports only some kinds of
    tokenizer."""

    def __init__(self, tokenizer: Any, texts: Sequence[Sequence[str]], prompt_length: int):
        self.tokenizer, self.texts, self.prompt_length = tokenizer, texts, prompt_length
        # A character takes up to four tokens, of one byte each. The tail may start within a character: four more.
        self.tail = 4 * max(len(text) for row in texts for text in row) + 4

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **unused: Any) -> torch.BoolTensor:
        rows = input_ids[:, self.prompt_length :][:, -self.tail :].tolist()
        tails = [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        ended = [any(text in tail for text in texts) for tail, texts in zip(tails, self.texts, strict=True)]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]


def ids_before_a_step(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt as they are within a longer text, where a step follows.

    Tokenizers such as GPT-2's write white space at the end of a text otherwise than in its middle: a policy that has
    written a step and its separator itself sees these tokens, and not those of the prompt alone.
    """
    letter = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(prompt + "a")["input_ids"])
    # where the letter is a part of another token, or tokens follow, the prompt alone has to do
    return ids[:-1] if letter == ids[-1:] else list(tokenizer(prompt)["input_ids"])


def _as_int64(seed: int) -> int:
    """The 64 bits of an unsigned seed as torch's int64 holds them."""
    return seed - 2**64 if seed >= 2**63 else seed

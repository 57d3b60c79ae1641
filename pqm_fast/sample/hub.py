"""A local Hugging Face model, in batches through `generate`."""

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
from pqm_fast.sample.noise import gumbel
from pqm_fast.sample.policy import Completion, Outcome, PolicyOptions, Request
from pqm_fast.sample.prompt import chat_format, write_prompt

SAY_SECONDS = 0.5


class HubPolicy:
    """A causal language model of a folder or hub id. Raises PQMError if it cannot be loaded."""

    def __init__(self, path: str, options: PolicyOptions, say: Callable[[str], Any] = lambda text: None):
        self.path, self.options, self.device, self.say = path, options, pick_device(options.device), say
        self.tokenizer = load_tokenizer(path)
        chat = options.prompt_format == "chat"
        self.prompt_format = chat_format(self.tokenizer, options.system) if chat else options.prompt_format
        default = "bfloat16" if self.device.type == "cuda" else "float32"
        dtype = getattr(torch, default if options.dtype == "auto" else options.dtype)
        try:
            with quiet_transformers():
                model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        except Exception as error:  # what transformers raises has no common class
            raise PQMError(f"{path}: no causal language model could be loaded: {error}") from error
        self.model = model.to(self.device).eval()
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        ends = model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        pad = self.tokenizer.pad_token_id
        self.pad: int = pad if pad is not None else self.ends[0] if self.ends else 0
        # the model's own settings (temperature, repetition penalty, ...) would be merged into ours
        self.model.generation_config = GenerationConfig(
            do_sample=False,  # the noise is in the scores
            max_new_tokens=options.max_new_tokens,
            eos_token_id=self.ends or None,
            pad_token_id=self.pad,
            cache_implementation="static" if options.kv_cache == "static" else None,
        )
        self.batch: list[tuple[Request, list[int]]] = []
        self.refused: list[Outcome] = []

    def room(self) -> int:
        return self.options.parallel - len(self.batch) - len(self.refused)

    def submit(self, request: Request) -> None:
        prompt = write_prompt(self.prompt_format, request.question, request.steps, self.options.step_separator)
        ids = list(self.tokenizer(prompt)["input_ids"])
        limit = self.options.max_new_tokens
        if self.context is not None and len(ids) + limit > self.context:
            message = (
                f"its prompt of {len(ids)} tokens and {limit} new ones do not fit the context of {self.path}, "
                f"{self.context} tokens; lower --max-new-tokens"
            )
            self.refused.append((request, RecordError(message, "prompt longer than the context")))
        else:
            self.batch.append((request, ids))

    def collect(self) -> list[Outcome]:
        done, self.refused = self.refused, []
        if self.batch:
            done += zip((request for request, _ in self.batch), self._generate(), strict=True)
            self.batch.clear()
        return done

    def close(self) -> None:
        self.batch.clear()

    @torch.no_grad()
    def _generate(self) -> list[Completion]:
        longest = max(len(ids) for _, ids in self.batch)
        tokens = torch.tensor([[self.pad] * (longest - len(ids)) + ids for _, ids in self.batch])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for _, ids in self.batch])
        seeds = torch.tensor([_signed(request.seed) for request, _ in self.batch], device=self.device)
        try:
            with quiet_transformers():
                out = self.model.generate(
                    input_ids=tokens.to(self.device),
                    attention_mask=mask.to(self.device),
                    logits_processor=self._sampling(seeds, longest),
                    stopping_criteria=self._ending(longest),
                )
        except torch.OutOfMemoryError as error:
            raise PQMError(
                f"{self.path}: the device is out of memory with {len(self.batch)} completions at once; lower "
                "--parallel and run the command again"
            ) from error
        return [self._completion(row) for row in out[:, longest:].tolist()]

    def _sampling(self, seeds: torch.Tensor, prompt_length: int) -> LogitsProcessorList:
        chain = LogitsProcessorList()
        if self.options.temperature == 0:
            return chain
        if self.options.temperature != 1:
            chain.append(TemperatureLogitsWarper(float(self.options.temperature)))
        if self.options.top_p < 1:
            chain.append(TopPLogitsWarper(self.options.top_p))
        chain.append(_Noise(seeds, prompt_length))
        return chain

    def _ending(self, prompt_length: int) -> StoppingCriteriaList:
        stop = self.options.stop
        criteria: list[StoppingCriteria] = [_Progress(self.say, self.options.max_new_tokens, self.ends, prompt_length)]
        return StoppingCriteriaList([*criteria, _StopTexts(self.tokenizer, stop, prompt_length)] if stop else criteria)

    def _completion(self, row: Sequence[int]) -> Completion:
        end = next((i for i, token in enumerate(row) if token in self.ends), None)
        text = str(self.tokenizer.decode(list(row[:end]), skip_special_tokens=True))
        stops = [at for at in map(text.find, self.options.stop) if at >= 0]
        return Completion(text[: min(stops, default=None)], end is not None or bool(stops))


class _Noise(LogitsProcessor):
    """Scores [B, vocabulary] whose largest entry is a sample of their softmax."""

    def __init__(self, seeds: torch.Tensor, prompt_length: int):
        self.seeds, self.prompt_length = seeds, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        position = input_ids.shape[1] - self.prompt_length
        return scores + gumbel(self.seeds, position, scores.shape[1])  # type: ignore[return-value]


class _Progress(StoppingCriteria):
    """Stops nothing: it is asked at every token, and says every half second how far the batch is."""

    def __init__(self, say: Callable[[str], Any], limit: int, ends: Sequence[int], prompt_length: int):
        self.say, self.limit, self.ends, self.prompt_length = say, limit, ends, prompt_length
        self.said = time.monotonic()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **unused: Any) -> torch.BoolTensor:
        if time.monotonic() - self.said >= SAY_SECONDS:
            written = input_ids[:, self.prompt_length :]
            ended = int(torch.isin(written, torch.tensor(self.ends, device=written.device)).any(1).sum())
            self.say(f"token {written.shape[1]:,} of {self.limit:,}, {ended:,} of {len(written):,} ended")
            self.said = time.monotonic()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]


class _StopTexts(StoppingCriteria):
    """Which rows hold one of some texts. transformers' own criterion takes only some kinds of tokenizer."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_length: int):
        self.tokenizer, self.texts, self.prompt_length = tokenizer, texts, prompt_length
        # a character may be up to four tokens, of a byte each; the first ones may be the rest of another
        self.tail = 4 * max(map(len, texts)) + 4

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **unused: Any) -> torch.BoolTensor:
        rows = input_ids[:, self.prompt_length :][:, -self.tail :].tolist()
        found = [any(text in tail for text in self.texts) for tail in map(self.tokenizer.decode, rows)]
        return torch.tensor(found, device=input_ids.device)  # type: ignore[return-value]


def _signed(seed: int) -> int:
    """64 bits as torch's int64 holds them."""
    return seed - 2**64 if seed >= 2**63 else seed

"""A local model through `generate`: samples depend on their seeds, not on the batch."""

import os
import re
import shutil
from collections import Counter

import pytest
import tiny
import torch
from part_file import rows_in
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from worlds import rows_of, sample, write

from pqm_fast.data import read_records
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample import local_policy
from pqm_fast.sample.local_policy import LocalPolicy
from pqm_fast.sample.options import PolicyOptions
from pqm_fast.sample.policy import Request, request_seed


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama with random weights, large enough that its samples differ, that ends one token in 30 or so."""
    folder = tiny.model_folder(tmp_path_factory.mktemp("hub") / "model", num_hidden_layers=2)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(tiny.config("llama", num_hidden_layers=2, initializer_range=0.3))
    with torch.no_grad():
        network.lm_head.weight[1] *= 2.0
    model_settings = {"do_sample": True, "temperature": 0.01, "top_k": 1, "repetition_penalty": 5.0}
    network.generation_config.update(**model_settings)  # must not change what we ask for
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "q.jsonl", [{"id": f"q{i}", "prompt": " ".join(["w3"] * (1 + i % 4))} for i in range(6)])


def write_all(model, requests, **options):
    """[(text, finished), ...] of requests, in batches of `parallel`."""
    policy = LocalPolicy(str(model), PolicyOptions(**({"max_new_tokens": 24, "device": "cpu"} | options)))
    waiting, outcomes = list(requests), []
    while len(outcomes) < len(requests):
        while waiting and policy.room():
            policy.submit(waiting.pop(0))
        outcomes += policy.collect()
    assert sorted(r.key for r, _ in outcomes) == sorted(r.key for r in requests)
    return [outcome for _, outcome in sorted(outcomes, key=lambda pair: pair[0].key)]


def asked(count, prompt="w3 w4", steps=()):
    return [Request(prompt, steps, request_seed("test", k), k) for k in range(count)]


# ---- determinism ----------------------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_the_batch(model):
    requests = [Request("w3 " * (1 + k % 5), (), request_seed(k), k) for k in range(12)]
    alone = write_all(model, requests, parallel=1)
    assert len({c.text for c in alone}) == 12
    assert write_all(model, requests, parallel=12) == alone
    order = [k * 7 % 12 for k in range(12)]
    assert write_all(model, [requests[k] for k in order], parallel=5) == alone


def test_samples_depend_on_the_seed(model):
    first, second = asked(2)
    same = [first._replace(key=k) for k in range(3)]
    assert len(set(write_all(model, same))) == 1
    assert write_all(model, [first, second])[0] != write_all(model, [first, second])[1]


@pytest.mark.parametrize("lost", [0, 60])
def test_files_are_the_same_whatever_the_batch_and_after_a_resume(model, data, tmp_path, monkeypatch, lost):
    options = {"n": 5, "max_new_tokens": 12, "device": "cpu", "step_separator": " "}
    assert sample(data, tmp_path / "whole.jsonl", str(model), parallel=64, **options) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert sample(data, tmp_path / "small.jsonl", str(model), parallel=3, **options) == 0
    assert (tmp_path / "small.jsonl").read_bytes() == whole

    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    sizes = []
    original = LocalPolicy._generate

    def counted(self, batch):
        if len(sizes) == 2:
            sizes.clear()
            raise KeyboardInterrupt
        sizes.append(len(batch))
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPolicy, "_generate", counted)
        assert sample(data, out, str(model), parallel=8, **options) == 130
    assert rows_in(part) == 16
    os.truncate(part, part.stat().st_size - lost)
    left = rows_in(part)
    monkeypatch.setattr(LocalPolicy, "_generate", lambda self, batch: sizes.append(len(batch)) or original(self, batch))
    assert sample(data, out, str(model), parallel=8, **options) == 0
    assert out.read_bytes() == whole
    assert sum(sizes) == 30 - left
    assert not list(tmp_path.glob("*.part*"))


def test_a_finished_model_is_not_loaded_again(model, data, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    options = {"n": 2, "max_new_tokens": 4, "device": "cpu"}
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.sample.sample_solutions._write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert sample(data, out, str(model), **options) == 130
    monkeypatch.setattr(LocalPolicy, "__init__", None)
    assert sample(data, out, str(model), **options) == 0
    assert len(rows_of(out)) == 6


# ---- the distribution -----------------------------------------------------------------------------------------------


def next_token(model, prompt, **options):
    """(probabilities of the next token, how often each was sampled) of 4000 completions of one token."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    logits = network(ids).logits[0, -1].double().detach()
    drawn = write_all(model, asked(4000, prompt), max_new_tokens=1, parallel=500, prompt_format="{prompt}", **options)
    counts = torch.zeros(97)
    for completion in drawn:
        counts[tokenizer.convert_tokens_to_ids(completion.text) if completion.text else 1] += 1
    return logits, counts


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_follow_the_model(model, temperature):
    logits, counts = next_token(model, "w3 w4", temperature=temperature)
    p = (logits / temperature).softmax(0)
    # <pad>, <unk> and what the tokenizer does not know leave no text, as <eos> does: one cell
    silent = [0, 1, 2, *range(90, 97)]
    p[1], p[[0, 2, *range(90, 97)]] = p[silent].sum(), 0
    expected = p * 4000
    large = expected >= 5
    got, wanted = (
        torch.cat([counts[large], counts[~large].sum()[None]]),
        torch.cat([expected[large], expected[~large].sum()[None]]),
    )
    chi_squared = float(((got - wanted) ** 2 / wanted.clamp(min=1e-9)).sum())
    freedom = len(got) - 1
    assert freedom > 5
    assert chi_squared < freedom + 3.3 * (2 * freedom) ** 0.5 + 5  # above the 0.001 quantile


def test_top_p_cuts_the_tail(model):
    logits, counts = next_token(model, "w3 w4", temperature=1.0, top_p=0.6)
    p, order = logits.softmax(0).sort(descending=True)
    kept = set(order[: int((p.cumsum(0) < 0.6).sum()) + 1].tolist())
    drawn = set(counts.nonzero().flatten().tolist())
    assert len(kept) > 2
    assert drawn <= kept | {1}
    assert len(drawn) > len(kept) / 2


def test_temperature_0_takes_the_likeliest_token(model):
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    texts = set()
    for prompt in ("w3 w4", "w5", "w6 w3 w8", "w9 w9"):
        ids = tokenizer(prompt)["input_ids"]
        length = len(ids)
        while len(ids) < length + 8 and ids[-1] != 1:
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
        expected = tokenizer.decode(ids[length:], skip_special_tokens=True)
        completions = write_all(model, asked(3, prompt), temperature=0.0, max_new_tokens=8)
        assert {c.text for c in completions} == {expected}
        texts.add(expected)
    assert len(texts) > 1


# ---- ends -----------------------------------------------------------------------------------------------------------


def test_the_end_token_the_limit_and_stop_texts(model):
    free = write_all(model, asked(60), max_new_tokens=30)
    assert {c.finished for c in free} == {True, False}
    assert all(len(c.text.split()) < 30 for c in free if c.finished)
    assert any(len(c.text.split()) == 30 for c in free if not c.finished)
    assert not any("<" in c.text for c in free)  # no special token
    word = next(c for c in free if len(c.text.split()) > 3).text.split()[2]
    stopped = write_all(model, asked(60), max_new_tokens=30, stop=(f" {word} ",))
    for before, after in zip(free, stopped, strict=True):
        text, stop, _ = before.text.partition(f" {word} ")
        assert after.text == text
        assert after.finished == (before.finished or bool(stop))
    assert free != stopped


def test_each_request_has_its_own_limit(model, monkeypatch):
    """The first tokens of what it would write otherwise, whatever the others of its batch may write."""
    requests = [request._replace(limit=1 + request.key * 5 % 30) for request in asked(24)]
    whole = write_all(model, [request._replace(limit=None) for request in requests])
    limited = write_all(model, requests)
    assert limited == write_all(model, requests, parallel=1)
    assert {c.finished for c in limited if c.tokens} == {True, False}
    for request, short, long in zip(requests, limited, whole, strict=True):
        assert short.tokens == min(request.limit, long.tokens)
        assert short.finished == (long.finished and request.limit >= long.tokens)
        assert long.text.startswith(short.text)
    # where a long prompt and a long limit do not fit the context together, they are written one after the other
    short, long = asked(2)
    mixed = [short._replace(question="w3", limit=24), long._replace(question="w3 " * 119, limit=8)]
    sizes, generate = [], LocalPolicy._generate
    alone = write_all(model, mixed, parallel=1)
    monkeypatch.setattr(LocalPolicy, "_generate", lambda self, batch: sizes.append(len(batch)) or generate(self, batch))
    assert write_all(model, mixed) == alone
    assert sizes == [1, 1]
    sizes.clear()
    write_all(model, [mixed[0], mixed[1]._replace(question="w3 " * 50)])
    assert sizes == [2]


def test_one_step_ends_at_the_separator(model):
    """Beside whole solutions in one batch: the same tokens, up to the first separator."""
    requests = asked(80)
    words = Counter(word for c in write_all(model, requests, max_new_tokens=30) for word in c.text.split()[1:-1])
    (word, _), (other, _) = words.most_common(2)
    word = f" {word} "
    options = {"max_new_tokens": 30, "step_separator": word, "stop": (f" {other} ",)}
    whole = write_all(model, requests, **options)
    mixed = [request._replace(one_step=request.key % 2 == 0) for request in requests]
    steps = write_all(model, mixed, **options)
    assert steps[1::2] == whole[1::2]
    goes_on = 0
    for before, after in zip(whole[::2], steps[::2], strict=True):
        step, separator, _ = before.text.partition(word)
        assert after.text == step
        assert after.goes_on == bool(separator)
        assert after.finished == (before.finished or bool(separator))
        # in this tokenizer a token is a word; the separator shows with the word after it, and the end is a token
        if separator:
            assert after.tokens == len(step.split()) + 2
        goes_on += after.goes_on
    assert goes_on >= 3
    assert not any(completion.goes_on for completion in whole)


def test_tokens_are_counted(model):
    """A word is a token, if the tokenizer knows it; so is the end, or a stop text."""
    policy = LocalPolicy(str(model), PolicyOptions(device="cpu", max_new_tokens=30, stop=(" w60",)))
    counted = {"end": 0, "stop": 0, "length": 0}
    for request in asked(60):
        policy.submit(request)
    generate = policy.model.generate
    rows = []
    policy.model.generate = lambda **options: rows.append(generate(**options)[:, 2:]) or torch.cat([ids, rows[0]], 1)
    ids = torch.zeros(60, 2, dtype=torch.long)
    outcomes = policy.collect()
    for row, (_, completion) in zip(rows[0].tolist(), outcomes, strict=True):
        end = next((i for i, token in enumerate(row) if token in (1, 60)), None)
        kind = "length" if end is None else "end" if row[end] == 1 else "stop"
        counted[kind] += 1
        assert completion.tokens == (30 if end is None else end + 1)
    assert min(counted.values()) > 0


def test_the_bar_moves_within_a_batch(model, data, tmp_path, monkeypatch, capfd):
    """By time, not by batch: how many tokens are written, and how many solutions have ended."""
    monkeypatch.setattr(local_policy, "PROGRESS_SECONDS", 0.0)
    said = []
    policy = LocalPolicy(str(model), PolicyOptions(max_new_tokens=24, device="cpu"), said.append)
    for request in asked(4):
        policy.submit(request)
    done = policy.collect()
    assert said[0].startswith("token 1 of 24, ")
    assert said[-1].endswith(f", {sum(completion.finished for _, completion in done)} of 4 ended")
    assert len(said) == int(said[-1].split()[1]) > 1

    assert sample(data, tmp_path / "out.jsonl", str(model), progress=True, n=1, max_new_tokens=8, device="cpu") == 0
    assert re.search(r"token 5 of 8, \d of 6 ended", capfd.readouterr().err)


def test_static_cache_gives_the_same(model):
    requests = asked(6)
    assert write_all(model, requests, kv_cache="static") == write_all(model, requests)


def test_a_prompt_longer_than_the_context(model, tmp_path, capfd):
    policy = LocalPolicy(str(model), PolicyOptions(max_new_tokens=100, device="cpu", parallel=2))
    policy.submit(Request("w3 " * 29, (), 1, "long"))
    assert policy.room() == 1
    [(request, error)] = policy.collect()
    assert request.key == "long"
    assert isinstance(error, RecordError)
    assert "prompt of 29 tokens and 100 new ones do not fit the context" in str(error)
    assert "128 tokens; lower --max-new-tokens" in str(error)

    rows = [{"id": "short", "prompt": "w3", "answer": 1}, {"id": "long", "prompt": "w3 " * 29}]
    data = write(tmp_path / "q.jsonl", rows)
    options = {"n": 2, "max_new_tokens": 100, "device": "cpu"}
    assert sample(data, tmp_path / "out.jsonl", str(model), **options) == 1
    assert "question long: its prompt of 29 tokens" in capfd.readouterr().err
    assert sample(data, tmp_path / "out.jsonl", str(model), skip_refused=True, **options) == 0
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == ["short"]
    assert {r.extra["answer"] for r in read_records(tmp_path / "out.jsonl")} == {1}


# ---- prompts --------------------------------------------------------------------------------------------------------


def test_the_prompt_holds_the_steps_so_far(model, monkeypatch):
    seen = []
    original = AutoTokenizer.from_pretrained(model).__class__.__call__
    policy = LocalPolicy(str(model), PolicyOptions(prompt_format="Q: {prompt} A:", device="cpu", max_new_tokens=1))
    monkeypatch.setattr(
        type(policy.tokenizer), "__call__", lambda self, text, **k: seen.append(text) or original(self, text, **k)
    )
    policy.submit(Request("w3", (), 1, None))
    assert seen == ["Q: w3 A:"]
    policy.submit(Request("w3", ("w4", "w5"), 1, None))
    assert "Q: w3 A:w4\nw5\na" in seen  # tokenised with a letter, which is then taken away
    unknown, (plain, stepwise) = policy.tokenizer.unk_token_id, (ids for _, ids in policy.batch)
    assert stepwise == [*plain[:-1], unknown, 5] == policy.tokenizer("Q: w3 A:w4\nw5\n")["input_ids"]


def test_a_separator_has_the_tokens_that_it_has_within_a_text():
    """GPT-2's tokenizer makes one token of two line breaks at the end of a text, and two tokens in its middle."""
    words = {word: i for i, word in enumerate(["Ċ", "ĊĊ", "a", "b", ".", "Ġ", "Ġa"])}
    backend = Tokenizer(models.BPE(words, [("Ċ", "Ċ"), ("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)

    def plain(text):
        return tokenizer(text)["input_ids"]

    assert plain("b.\n\n") == [3, 4, 1]
    assert plain("b.\n\nb") == [3, 4, 0, 0, 3]
    assert local_policy.ids_before_a_step(tokenizer, "b.\n\n") == [3, 4, 0, 0]
    # a space would be in the token of the word that follows: the text alone is tokenised
    assert local_policy.ids_before_a_step(tokenizer, "b. ") == plain("b. ") == [3, 4, 5]


def test_chat_template(model, tmp_path):
    folder = tmp_path / "chat"
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"device": "cpu", "prompt_format": "chat"}
    with pytest.raises(PQMError, match="the tokenizer has no chat template"):
        LocalPolicy(str(folder), PolicyOptions(**options))
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    assert LocalPolicy(str(folder), PolicyOptions(**options)).prompt_format == "[user] {prompt} [assistant] "
    policy = LocalPolicy(str(folder), PolicyOptions(**options, system="Be right."))
    assert policy.prompt_format == "[system] Be right. [user] {prompt} [assistant] "
    tokenizer.chat_template = "{{ raise_exception('no system messages') }}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(PQMError, match="rejects the messages: no system messages"):
        LocalPolicy(str(folder), PolicyOptions(**options, system="Be right."))
    tokenizer.chat_template = "nothing of it"
    tokenizer.save_pretrained(folder)
    with pytest.raises(PQMError, match="does not repeat the question once"):
        LocalPolicy(str(folder), PolicyOptions(**options))


def test_a_model_that_is_none(tmp_path, data, capfd):
    for name, said in (
        (str(tmp_path / "nowhere"), "no such folder; check"),
        ("nobody/nothing", "no such folder, and no"),
    ):
        assert sample(data, tmp_path / "out.jsonl", name, device="cpu") == 1
        assert f"{name}: {said}" in capfd.readouterr().err
    folder = tiny.model_folder(tmp_path / "no weights")
    assert sample(data, tmp_path / "out.jsonl", str(folder), device="cpu") == 1
    assert f"{folder}: no causal language model could be loaded" in capfd.readouterr().err
    assert not (tmp_path / "out.jsonl.part").exists()


def test_out_of_memory_says_what_to_do(model, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    policy = LocalPolicy(str(model), PolicyOptions(device="cpu", max_new_tokens=4))
    monkeypatch.setattr(policy.model, "generate", full)
    policy.submit(asked(1)[0])
    with pytest.raises(PQMError, match="out of memory with 1 completions at once; lower --parallel"):
        policy.collect()


@pytest.mark.gpu
@pytest.mark.parametrize("kv_cache", ["dynamic", "static"])
def test_samples_on_a_gpu(model, kv_cache):
    """The noise is that of a CPU; in float32 the logits are nearly so."""
    requests = asked(32)
    cpu = write_all(model, requests, dtype="float32")
    gpu = write_all(model, requests, dtype="float32", device="cuda", kv_cache=kv_cache)
    assert sum(a == b for a, b in zip(cpu, gpu, strict=True)) >= 31
    assert write_all(model, requests, dtype="bfloat16", device="cuda", kv_cache=kv_cache) == write_all(
        model, requests, dtype="bfloat16", device="cuda", kv_cache=kv_cache
    )


def test_signed_seeds():
    assert [local_policy._as_int64(s) for s in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [0, 2**63 - 1, -(2**63), -1]

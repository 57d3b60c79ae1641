"""The model on packed batches: equal to one trajectory at a time, for every architecture, and a plain HF checkpoint."""

import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from pqm_kernels import trajectory_losses
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from pqm_fast.data.encode import Encoder, Template
from pqm_fast.data.pack import pack, pack_trees
from pqm_fast.data.records import Record
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.model import attention, last_layer
from pqm_fast.model.check_packing import check_packing
from pqm_fast.model.device import bfloat16_gain, pick_dtype
from pqm_fast.model.loading import load_classifier, load_config
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.scoring.scorer import Scorer

STEP_ROWS = ("llama", "mistral", "qwen2", "qwen3")


def make_model(tmp_path, architecture="llama", step_rows_only=True, **changes):
    torch.manual_seed(0)
    folder = tiny.model_folder(tmp_path / architecture, architecture, **changes)
    return StepQModel.from_pretrained(str(folder), step_rows_only=step_rows_only)


def trajectories(seed=0, lengths=(9, 17, 3, 30, 12, 5)):
    rng = np.random.default_rng(seed)
    return [Trajectory(rng.integers(0, 97, length), *steps(rng, length)) for length in lengths]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def solutions(seed=0):
    """Solutions of three questions, by question: some begin alike, one is the beginning of another, two are equal."""
    rng = np.random.default_rng(seed)
    groups = []
    for sizes in ((9, 17, 3, 30, 12), (8, 8), (6,)):
        question = rng.integers(3, 97, 2)
        group = [np.concatenate([question, rng.integers(0, 97, n)]) for n in sizes]
        if len(sizes) > 2:
            group[1][:7] = group[0][:7]  # more than the question in common
            group += [group[3][:20], group[0]]
        groups.append([Trajectory(tokens, *steps(rng, len(tokens))) for tokens in group])
    numbers = iter(range(99))
    return [[(next(numbers), t) for t in group] for group in groups]


def steps(rng, length):
    rows = np.sort(rng.choice(length, int(rng.integers(1, min(6, length))), replace=False)).astype(np.int32)
    return rows, rng.integers(0, 2, len(rows)).astype(np.float32)


def one_by_one(model, made):
    """Scores, loss and gradients of trajectories alone, through transformers' own attention and all layers whole."""
    model.zero_grad()
    model.classifier.set_attn_implementation("eager")
    scores, losses = [], []
    for t in made:
        out = model.classifier(input_ids=torch.as_tensor(t.input_ids)[None].long(), use_cache=False)
        q = out.logits[0, torch.as_tensor(t.step_tokens).long(), 0]
        scores.append(q.detach())
        cu_steps = torch.tensor([0, len(q)], dtype=torch.int32)
        losses.append(trajectory_losses(q, torch.as_tensor(t.labels), cu_steps, "rank", 2.0))
    loss = torch.cat(losses).mean()
    loss.backward()
    model.classifier.set_attn_implementation(attention.PACKED_ATTENTION)
    return scores, loss.detach(), gradients(model)


def assert_same(model, batches, expected, way=""):
    """Micro-batches, accumulated, against what `one_by_one` gave."""
    scores, loss, reference = expected
    model.zero_grad()
    got_loss = 0.0
    for batch in batches:
        out = model(batch, loss="rank", zeta=2.0, normalizer=float(len(scores)))
        out.loss.backward()
        got_loss += out.loss.detach()
        alone = [scores[m] for m in batch.members]
        assert (out.q - torch.cat(alone)).abs().max() <= 1e-5, way
    assert abs(got_loss - loss) <= 1e-5 * abs(loss), way
    got = gradients(model)
    assert got.keys() == reference.keys()
    assert len(got) >= 3 * 7  # every layer has one
    for name in got:
        # no gradient at all beside rounding: the bias of keys, to which softmax is blind
        if reference[name].norm() > 1e-6:
            assert tiny.relative_error(got[name], reference[name]) <= 1e-5, (name, way)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_packed_equals_one_by_one(tmp_path, architecture):
    """Values and every parameter's gradient, against transformers' own attention on one trajectory at a time."""
    model = make_model(tmp_path, architecture)
    assert model.step_rows_only == (architecture in STEP_ROWS)
    groups = solutions()
    expected = one_by_one(model, [t for group in groups for _, t in group])
    for step_rows_only in {False, model.step_rows_only}:
        model.step_rows_only = step_rows_only
        for parts, pad_to in (([groups], None), ([groups[:1], groups[1:]], 128)):
            plain = [pack(chain(*part), pad_to=pad_to) for part in parts]
            trees = [pack_trees(part, pad_to=pad_to) for part in parts]
            assert_same(model, plain, expected, f"plain, {step_rows_only=}, {pad_to=}")
            assert_same(model, trees, expected, f"trees, {step_rows_only=}, {pad_to=}")
    assert sum(b.num_tokens for b in trees) < 0.8 * sum(b.num_tokens for b in plain)
    assert any(len(b.step_tokens.unique()) < b.num_steps for b in trees)  # rows that several steps read


def test_trajectories_do_not_see_each_other(tmp_path):
    model = make_model(tmp_path, "qwen2").eval()
    first, second = trajectories(lengths=(20, 20))
    other = trajectories(seed=5, lengths=(20,))[0]
    with torch.no_grad():
        a = model.hidden(pack([(0, first), (1, second)]))
        b = model.hidden(pack([(0, other), (1, second)]))
    assert not torch.equal(a[:20], b[:20])
    assert torch.equal(a[20:], b[20:])


def test_checkpoint_is_a_token_classification_folder(tmp_path):
    """AutoModelForTokenClassification gives what Scorer gives, and saving it back loses nothing."""
    model = make_model(tmp_path).eval()
    tokenizer = tiny.tokenizer(90)
    assert "was added as id 90" in model.fit_vocabulary(tokenizer, "<|step|>")
    model.save(tmp_path / "out", tokenizer, Recipe(Template(), "rank", 4.0), torch.float32)

    rng = np.random.default_rng(0)
    solutions = [(tiny.text(rng, 5), [tiny.text(rng, int(n)) for n in rng.integers(1, 7, 4)]) for _ in range(7)]
    scorer = Scorer.from_pretrained(tmp_path / "out", max_tokens=64, device="cpu")
    got = scorer.score(solutions)

    for folder in ("out", "again"):
        plain, info = AutoModelForTokenClassification.from_pretrained(
            tmp_path / folder, dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert plain.config.num_labels == 1
        assert plain.config.problem_type == "regression"
        assert plain.config.classifier_dropout == 0.0
        assert plain.config.pqm_fast["template"] == Template().to_dict()
        step = tokenizer.convert_tokens_to_ids("<|step|>")
        for (question, steps), scores in zip(solutions, got, strict=True):
            ids = torch.tensor([tokenizer.encode(f"{question}\n" + "".join(f"{s}\n<|step|>" for s in steps))])
            with torch.no_grad():
                logits = plain.eval()(input_ids=ids).logits[0, :, 0]
            assert logits[ids[0] == step].tolist() == pytest.approx(scores, abs=1e-5)
        if folder == "out":
            plain.save_pretrained(tmp_path / "again")
    first = AutoModelForTokenClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    second = plain.state_dict()
    assert first.keys() == second.keys()
    assert {"score.weight", "score.bias"} < first.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_pipeline_of_transformers_as_documented(tmp_path):
    """Its softmax over one label is 1 everywhere, which says nothing; docs/formats.md says what to call instead."""
    model = make_model(tmp_path).eval()
    tokenizer = tiny.tokenizer(90)
    model.fit_vocabulary(tokenizer, "<|step|>")
    model.save(tmp_path / "out", tokenizer, Recipe(Template()), torch.float32)
    [expected] = Scorer.from_pretrained(tmp_path / "out", device="cpu").score([("w3 w4", ["w5", "w6 w7"])])
    text = "w3 w4 w5 <|step|> w6 w7 <|step|>"
    classify = pipeline("token-classification", model=str(tmp_path / "out"), dtype=torch.float32, ignore_labels=[])
    assert [found["score"] for found in classify(text)] == [1.0] * 7

    document = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "pipeline(" in block]
    names = {"text": text}
    exec(code.replace('"RUN"', repr(str(tmp_path / "out"))), names)
    assert names["q"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_save_and_load_give_the_same_scores(tmp_path, architecture):
    model = make_model(tmp_path, architecture).eval()
    batch = pack(list(enumerate(trajectories())), labelled_only=False)
    model.save(tmp_path / "out", tiny.tokenizer(), Recipe(Template(step_token="last")), torch.float32)
    again = StepQModel.from_pretrained(str(tmp_path / "out")).eval()
    assert again.load_report.complete
    assert again.load_report.notes == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    # to the bit only where the weights lie in memory alike
    assert (model.scores(batch) - again.scores(batch)).abs().max() <= 1e-6
    assert Recipe.from_config(again.config, "out") == Recipe(Template(step_token="last"))


def test_default_checkpoint_is_bfloat16_throughout(tmp_path):
    from safetensors.torch import load_file

    model = make_model(tmp_path)
    model.save(tmp_path / "out", tiny.tokenizer(), Recipe(Template()))
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the model itself is as it was


def test_a_causal_lm_loads_without_its_head(tmp_path):
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_config(tiny.config("llama", tie_word_embeddings=False))
    lm.save_pretrained(tmp_path / "lm")
    model = StepQModel.from_pretrained(str(tmp_path / "lm"))
    assert model.load_report.notes == ["the Q-value head is new"]
    assert not model.load_report.complete
    assert not any("lm_head" in name for name, _ in model.named_parameters())
    assert torch.equal(model.backbone.layers[0].mlp.up_proj.weight, lm.model.layers[0].mlp.up_proj.weight)


def test_new_step_token_uses_a_spare_row_or_grows(tmp_path):
    model = make_model(tmp_path)
    embedding = model.classifier.get_input_embeddings().weight.detach().clone()
    note = model.fit_vocabulary(tiny.tokenizer(90), "<|step|>")
    assert note == "step token '<|step|>' was added as id 90"
    after = model.classifier.get_input_embeddings().weight
    assert after.shape == (97, 32)
    assert torch.allclose(after[90], embedding[:90].mean(0))
    assert torch.equal(after[:90], embedding[:90])

    full = make_model(tmp_path)
    note = full.fit_vocabulary(tiny.tokenizer(97), "<|step|>")
    assert "grew from 97 to 128 rows" in note
    assert full.config.vocab_size == 128
    assert full.fit_vocabulary(tiny.tokenizer(97), "w5") is None
    assert full.fit_vocabulary(tiny.tokenizer(97), "last") is None


def test_every_id_of_the_tokenizer_has_an_embedding(tmp_path):
    """Also ids that were added to the tokenizer, and a step token that it knows already."""
    tokenizer = tiny.tokenizer(97)
    tokenizer.add_tokens(["<|step|>"])  # id 97, one beyond the embedding
    model = make_model(tmp_path)
    assert "grew from 97 to 128 rows" in model.fit_vocabulary(tokenizer, "<|step|>")
    assert torch.isfinite(model.embedding).all()
    tokenizer.add_tokens(["word"] + [f"word{i}" for i in range(40)])
    with pytest.raises(PQMError, match="ids up to 138 but the embedding only 128 rows"):
        model.fit_vocabulary(tokenizer, "<|step|>")


def test_a_tokenizer_that_transformers_replaces_is_told(tmp_path):
    for architecture, count in (("llama", 0), ("qwen2", 1)):
        notes = []
        load_tokenizer(str(tiny.model_folder(tmp_path / architecture, architecture)), notes)
        assert len(notes) == count
    assert "replaces the one in" in notes[0]


def test_attention_in_chunks_is_refused(tmp_path):
    config = tiny.config("llama")
    config.attention_chunk_size = 16
    config.save_pretrained(tmp_path / "chunked")
    with pytest.raises(PQMError, match="llama attends in chunks"):
        StepQModel.from_pretrained(str(tmp_path / "chunked"))


def test_half_precision_passes_the_check(tmp_path):
    for architecture in tiny.ARCHITECTURES:
        folder = tiny.model_folder(tmp_path / architecture, architecture)
        assert StepQModel.from_pretrained(str(folder), dtype=torch.bfloat16).classifier.dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_random_weights_are_drawn_on_their_device(tmp_path, architecture):
    folder = str(tiny.model_folder(tmp_path / architecture, architecture))
    made, report = load_classifier(folder, load_config(folder), torch.bfloat16, "meta")
    assert {t.device.type for t in (*made.parameters(), *made.buffers())} == {"meta"}
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert report.notes == [f"{folder} holds a config but no weights: starting from random ones"]
    assert not report.complete


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_random_weights_on_the_cpu_are_those_of_transformers(tmp_path, architecture):
    """Also the buffers, such as the frequencies of rotary embeddings."""
    folder = str(tiny.model_folder(tmp_path / architecture, architecture))
    torch.manual_seed(3)
    ours, _ = load_classifier(folder, load_config(folder), torch.float32, torch.device("cpu"))
    torch.manual_seed(3)
    expected = AutoModelForTokenClassification.from_config(load_config(folder))
    for tensors in ("named_parameters", "named_buffers"):
        found = dict(getattr(ours, tensors)())
        assert all(torch.equal(found.pop(name), tensor) for name, tensor in getattr(expected, tensors)())
        assert not found


@pytest.mark.gpu
def test_random_weights_on_a_gpu_keep_the_rotary_frequencies(tmp_path):
    folder = str(tiny.model_folder(tmp_path / "llama"))
    on_gpu, on_cpu = (
        dict(load_classifier(folder, load_config(folder), torch.float32, device)[0].named_buffers())
        for device in ("cuda", "cpu")
    )
    assert on_gpu.keys() == on_cpu.keys()
    for name, tensor in on_gpu.items():
        torch.testing.assert_close(tensor.cpu(), on_cpu[name], rtol=2**-22, atol=0.0)


@pytest.mark.parametrize(("gain", "expected"), [(0.2, torch.float32), (1.4, torch.float32), (1.5, torch.bfloat16)])
def test_auto_takes_bfloat16_on_a_cpu_that_is_faster_in_it(tmp_path, monkeypatch, gain, expected):
    measured = []
    monkeypatch.setattr("pqm_fast.model.device.bfloat16_gain", lambda *sizes: measured.append(sizes) or gain)
    wide = str(tiny.model_folder(tmp_path / "wide", hidden_size=256, intermediate_size=300))
    cpu, notes = torch.device("cpu"), []
    assert pick_dtype("auto", cpu, wide, notes) == expected
    name = str(expected).removeprefix("torch.")
    assert notes == [f"dtype {name}: this CPU multiplies {gain} times as fast in bfloat16 as in float32"]
    assert measured == [(256, 300)]
    assert pick_dtype("auto", cpu, str(tiny.model_folder(tmp_path / "gpt2", "gpt2", n_embd=512)), notes) == expected
    assert measured[1:] == [(512, 2048)]


def test_a_dtype_that_needs_no_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr("pqm_fast.model.device.bfloat16_gain", lambda *_: pytest.fail("measured"))
    cpu, narrow, notes = torch.device("cpu"), str(tiny.model_folder(tmp_path / "narrow", hidden_size=248)), []
    assert pick_dtype("auto", cpu, narrow, notes) == torch.float32
    assert pick_dtype("bfloat16", cpu, "nowhere", notes) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cuda"), "nowhere", notes) == torch.bfloat16
    assert notes == []


def test_a_gain_is_measured_once_for_each_size(monkeypatch):
    """The best of several tries counts; the clock is made up."""
    bfloat16_gain.cache_clear()
    ends = [9.0, 6.0, 3.0, 5.0, 9.0, 1.0, 2.0, 1.5]
    ticks = iter([tick for end in ends for tick in (0.0, end)])
    monkeypatch.setattr("pqm_fast.model.device.time.perf_counter", lambda: next(ticks))
    assert [bfloat16_gain(8, 4) for _ in range(2)] == [3.0, 3.0]
    bfloat16_gain.cache_clear()


def test_what_is_no_usable_model_is_refused_by_name(tmp_path):
    with pytest.raises(PQMError, match="nowhere: no such folder"):
        StepQModel.from_pretrained(str(tmp_path / "nowhere"))
    for kind in ("t5", "bert"):
        from transformers import AutoConfig

        AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(PQMError, match=f"{kind} is not a decoder"):
            StepQModel.from_pretrained(str(tmp_path / kind))
    model = make_model(tmp_path, "qwen2")
    model.save(tmp_path / "other", tiny.tokenizer(), Recipe(Template()))
    tiny.config("llama", num_hidden_layers=5).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "SHA256SUMS").unlink()  # by which any change is known
    with pytest.raises(PQMError, match="do not fit the architecture llama"):
        StepQModel.from_pretrained(str(tmp_path / "other"))


def test_an_architecture_with_state_across_tokens_is_refused(tmp_path):
    from transformers import AutoConfig

    mamba = AutoConfig.for_model("mamba", vocab_size=97, hidden_size=32, state_size=4, num_hidden_layers=2)
    mamba.save_pretrained(tmp_path / "mamba")
    with pytest.raises(PQMError, match="mamba"):
        StepQModel.from_pretrained(str(tmp_path / "mamba"))


def one_sequence(batch):
    total = (sum(batch.lengths),)
    return batch if batch.paths is not None else replace(batch, lengths=total, path_lengths=total)


def another_path(batch):
    return batch if batch.paths is None else replace(batch, paths=batch.paths.roll(1))


@pytest.mark.parametrize(("damage", "found"), [(one_sequence, "packed trajectories"), (another_path, "prefix trees")])
def test_check_packing_bites(tmp_path, monkeypatch, damage, found):
    """With an attention that lets trajectories see each other, the check must fail."""
    model = make_model(tmp_path)
    check_packing(model)
    right = attention.Planner.__call__
    monkeypatch.setattr(attention.Planner, "__call__", lambda self, batch: right(self, damage(batch)))
    with pytest.raises(PQMError, match=rf"{found} do not give the hidden states .*not supported"):
        check_packing(model)


def test_check_packing_bites_in_the_last_layer(tmp_path, monkeypatch):
    model = make_model(tmp_path)
    check_packing(model)
    monkeypatch.setattr(last_layer, "apply_rotary_pos_emb", lambda query, key, cos, sin: (query, key))
    with pytest.raises(PQMError, match=r"last layer at step rows only.*not supported"):
        check_packing(model)


def test_scorer_takes_any_order_and_length(tmp_path):
    model = make_model(tmp_path).eval()
    rng = np.random.default_rng(1)
    solutions = [(tiny.text(rng, 4), [tiny.text(rng, 3)] * int(n)) for n in rng.integers(1, 9, 20)]
    encoder = Encoder(tiny.tokenizer(), Template(step_token="last"), 128)
    together = Scorer(model, encoder, max_tokens=100).score(solutions)
    alone = [Scorer(model, encoder).score([s])[0] for s in solutions]
    for a, b, (_, steps) in zip(together, alone, solutions, strict=True):
        assert len(a) == len(steps)
        assert a == pytest.approx(b, abs=1e-5)
    assert Scorer(model, encoder).score([]) == []


def test_steps_beyond_the_context_have_no_score(tmp_path):
    model = make_model(tmp_path).eval()
    encoder = Encoder(tiny.tokenizer(), Template(step_token="last"), 10)
    cut = ("w3 w4", ["w5 w6 w7", "w8 w9 w10", "w11 w12 w13"])
    scorer = Scorer(model, encoder)
    scores, none, whole = scorer.score([cut, ("w3 " * 20, ["w5", "w6"]), ("w3", ["w5"])])
    assert [s is None for s in scores] == [False, False, True]
    assert none == [None, None]
    assert whole == pytest.approx(scorer.score([("w3", ["w5"])])[0], abs=1e-5)
    assert scorer.score([("w3 " * 20, ["w5"])]) == [[None]]


HALF = "w5 \ud800"


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        (None, "solutions are None; pass a list of (question, steps) pairs"),
        ("w3 w4", "solutions are 'w3 w4'; pass a list"),
        ({"w3": ["w4"]}, "solutions are {'w3': ['w4']}; pass a list"),
        (("w3", ["w4"]), "solution 0: 'w3' is not a pair; pass (question, steps)"),
        ([("w3", ["w4"]), ("w3", "abc")], "solution 1: steps are 'abc' (str); pass a non-empty list of texts"),
        ([("w3", None)], "solution 0: steps are None (NoneType); pass a non-empty list of texts"),
        ([("w3", {"w4"})], "solution 0: steps are {'w4'} (set); pass"),
        ([("w3", [])], "solution 0: there are no steps; give at least one"),
        ([("w3", ["w4", None])], "solution 0: step 2 is None (NoneType); it must be text"),
        ([("w3", ["w4", " \n"])], "solution 0: step 2 of 2 is empty"),
        ([("w3", [["w4"]])], "solution 0: step 1 is ['w4'] (list); it must be text"),
        ([(" ", ["w4"])], "solution 0: the question is empty"),
        ([(None, ["w4"])], "solution 0: the question is None (NoneType); it must be text"),
        ([("w3", ["w4"], 1)], "solution 0: ('w3', ['w4'], 1) is not a pair"),
        ([None], "solution 0: None is not a pair"),
        ([("w3", ["w4"]), ("w3", ["w4", "w5", HALF])], "solution 1: step 3 holds half a surrogate pair"),
        ([("w3", [HALF])], "solution 0: step 1 holds half a surrogate pair"),
        ([(HALF, ["w4"])], "solution 0: the question holds half a surrogate pair"),
    ],
)
def test_what_scorer_is_given_is_checked(small_scorer, solutions, message):
    with pytest.raises(PQMError) as error:
        small_scorer.score(solutions)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (None, {}, "model: None (NoneType) was given"),
        (3, {}, "model: 3 (int) was given"),
        ("", {}, "model: empty"),
        ("./nowhere", {}, "./nowhere: no such folder"),
        ("./nowhere", {"third_party": "trl"}, "third_party: 'trl' was given; pass ThirdPartyPRM('trl')"),
        ("m", {"device": "abacus"}, "device: abacus cannot be used here"),
        ("m", {"device": None}, "device: None (NoneType) was given"),
        ("m", {"max_tokens": 0}, "max_tokens: 0 was given"),
        ("m", {"max_tokens": "x"}, "max_tokens: 'x' (str) was given; pass a whole number"),
        ("m", {"max_tokens": None}, "max_tokens: None (NoneType) was given"),
        ("m", {"max_tokens": 1.5}, "max_tokens: 1.5 (float) was given"),
        ("m", {"max_length": "x"}, "max_length: 'x' (str) was given; pass a whole number"),
        ("m", {"max_length": 2.5}, "max_length: 2.5 (float) was given"),
        ("m", {"max_length": True}, "max_length: True (bool) was given"),
    ],
)
def test_what_a_scorer_is_made_of_is_checked(path, options, message):
    with pytest.raises(PQMError) as error:
        Scorer.from_pretrained(path, **options)
    assert message in str(error.value)
    if not options and not isinstance(path, str):
        with pytest.raises(PQMError, match="was given; name a folder or a hub id"):
            StepQModel.from_pretrained(path)


def test_a_dtype_that_is_none_of_ours(tmp_path):
    with pytest.raises(PQMError, match="dtype: 'float8' was given; give auto, float32, bfloat16"):
        pick_dtype("float8", torch.device("cpu"), "m")


def test_whatever_holds_texts_in_order_is_taken(small_scorer):
    pairs = [("w3", ["w4", "w5"])] * 2
    assert small_scorer.score(iter([("w3", ("w4", "w5")), ["w3", iter(["w4", "w5"])]])) == small_scorer.score(pairs)
    assert small_scorer.score(np.array([])) == []


@pytest.fixture(scope="module")
def small_scorer(tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("small")).eval()
    return Scorer(model, Encoder(tiny.tokenizer(), Template(step_token="last"), 10))


def test_tokenizer_of_a_checkpoint_round_trips(tmp_path):
    model = make_model(tmp_path)
    tokenizer = tiny.tokenizer(90)
    model.fit_vocabulary(tokenizer, "<|step|>")
    model.save(tmp_path / "out", tokenizer, Recipe(Template()))
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    [encoded] = Encoder(again, Template(), 100)([Record("r", "w3 w4", ["w5", "w6 w7"])])
    assert encoded.input_ids.tolist() == [3, 4, 5, 90, 6, 7, 90]

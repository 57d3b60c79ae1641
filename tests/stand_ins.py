"""Functions with the signatures of the varlen kernels, in plain PyTorch. They insist on what the real ones insist
on."""

import torch


def reference(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window, softcap=0.0):
    """Causal attention within each sequence, whose last query sees its last key: [T, H, d]. `window`: (left, right)
    keys besides the own, -1 for all."""
    for cu, longest, x in ((cu_q, max_q, q), (cu_k, max_k, k)):
        assert cu.dtype == torch.int32
        assert cu.dim() == 1
        assert cu.is_contiguous()
        lengths = cu.diff().tolist()
        assert cu[0] == 0
        assert cu[-1] == len(x)
        assert min(lengths) > 0
        assert type(longest) is int
        assert max(lengths) == longest
    assert q.dtype == k.dtype == v.dtype
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[1] % k.shape[1] == 0
    assert len(cu_q) == len(cu_k)
    assert len(k) == len(v)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    left, right = window
    assert right == 0
    outputs = []
    bounds = [list(zip(cu.tolist(), cu.tolist()[1:], strict=False)) for cu in (cu_q, cu_k)]
    for (start, end), (first, last) in zip(*bounds, strict=True):
        own_q, own_k, own_v = q[start:end].transpose(0, 1), *(x[first:last].transpose(0, 1) for x in (k, v))
        scores = own_q @ own_k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        assert last - first >= end - start
        back = torch.arange(last - first)[start - end :, None] - torch.arange(last - first)
        sees = (back >= 0) & (back <= left) if left >= 0 else back >= 0
        outputs.append((scores.masked_fill(~sees, -torch.inf).softmax(-1) @ own_v).transpose(0, 1))
    return torch.cat(outputs)


def flash(q, k, v, lengths, scale, causal, window, softcap):
    """What all releases do."""
    assert causal
    left, right = window
    return reference(q, k, v, *lengths, scale=scale, window=(left, 0 if right == -1 else right), softcap=softcap)


def flash_2(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    out = flash(q, k, v, lengths, softmax_scale, causal, window_size, softcap)
    return torch.nn.functional.dropout(out, dropout_p)  # any that shows that it came through


def flash_3(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    out = flash(q, k, v, lengths, softmax_scale, causal, window_size, softcap)
    return out, None  # the releases that always return the log-sum-exp


def flash_4(
    q,
    k,
    v,
    qv=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    seqused_q=None,
    seqused_k=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(None, None),
    learnable_sink=None,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    return_lse=False,
):
    assert not softcap  # its backward pass for sequences has none
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    window = tuple(-1 if side is None else side for side in window_size)
    return flash(q, k, v, lengths, softmax_scale, causal, window, softcap), None


def varlen_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert type(window_size) is tuple  # it is compared with (-1, 0)
    return reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window=window_size)


def varlen_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert type(window_size) is tuple
    return reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window=window_size)

"""What depends on no input is computed: attention weights, how many entries a mask chooses, constants of a batch.

Torch itself is the oracle, in float64. 1e-13 relative to the largest entry: sums of at most a few dozen products.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compiler_rules import Function, assert_equal, assert_plain, numbers
from torch import nn

from skipform.compiler import onnx_file
from skipform.compiler.rewrite import UnsupportedOperation, rewrite

Q, K = numbers(1, 2, 4, 3), numbers(1, 2, 5, 3)
BIAS = numbers(4, 5)
MASK = BIAS > 0


def assert_rewritten(module, *shape, batches=(1, 3)):
    module = module.double().eval()
    plain = rewrite(module, numbers(1, *shape))
    assert_plain(plain)
    for batch in batches:
        x = numbers(batch, *shape)
        with torch.no_grad():
            assert_equal(module(x), plain(x))


def test_attention_with_constant_queries_and_keys_is_a_linear_map():
    """Masks of numbers and of truth values, causal, scaled, with fewer heads of values than of queries."""
    attention = F.scaled_dot_product_attention

    def forward(x):
        b = x.shape[0]
        return [
            attention(Q, K, x),
            attention(Q.expand(b, -1, -1, -1), K.expand(b, -1, -1, -1), x, scale=0.1),
            attention(Q, K, x, is_causal=True),
            attention(Q, K, x, MASK | (torch.arange(5) == 0)),
            attention(Q, K, x, BIAS),
            attention(torch.cat((Q, -Q), 1), K, x, enable_gqa=True),
            attention(Q, Q, Q).mean() * x + F.dropout(Q, 0.5, False).sum(),
            attention(Q[0, 0], K[0, 0], x[:, 0]),
        ]

    assert_rewritten(Function(forward), 2, 5, 6)


class Learned(nn.Module):
    """Multi-head attention of learned queries to learned keys; its values are the input."""

    def __init__(self, batch_first, need_weights, **options):
        super().__init__()
        self.batch_first, self.need_weights = batch_first, need_weights
        self.query, self.key = nn.Parameter(numbers(4, 1, 6)), nn.Parameter(numbers(5, 1, 6))
        self.attention = nn.MultiheadAttention(6, 3, batch_first=batch_first, **options)

    def forward(self, x):
        batch = x.shape[0] if self.batch_first else x.shape[1]
        q, k = (w.expand(-1, batch, -1) for w in (self.query, self.key))
        if self.batch_first:
            q, k = q.transpose(0, 1), k.transpose(0, 1)
        output, weights = self.attention(q, k, x, need_weights=self.need_weights)
        return (output, weights) if self.need_weights else output


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_multi_head_attention_of_learned_queries_and_keys_is_rewritten(need_weights, options):
    assert_rewritten(Learned(True, need_weights, **options), 5, 6)


def test_multi_head_attention_with_the_batch_in_the_second_dimension():
    module = Learned(False, True)
    assert_rewritten(Function(lambda x, module: module(x.transpose(0, 1))[0].transpose(0, 1), module=module), 5, 6)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: F.scaled_dot_product_attention(x, x, x), ["constant weights"]),
        (lambda x: F.scaled_dot_product_attention(Q[0, 0], K[0, 0], K[0, 0], x[:, :, :5]), ["constant weights"]),
        (lambda x: F.scaled_dot_product_attention(Q[0, 0], Q[0, 0], x, dropout_p=0.5), ["is random"]),
        (lambda x: x + F.dropout(x.new_ones(x.shape), 0.5, True), ["random numbers"]),
    ],
)
def test_attention_that_is_no_linear_map_is_refused(function, words):
    with pytest.raises(UnsupportedOperation) as error:
        rewrite(Function(function).eval(), numbers(1, 4, 5))
    for word in words:
        assert word in str(error.value)


class Masked(nn.Module):
    """A mask among the buffers, and one that forward computes from weights."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)
        self.weight = nn.Parameter(mask.double() - 0.5)
        self.readout = nn.Linear(int(mask.sum()), 2)

    def forward(self, x):
        first = torch.zeros_like(self.mask)
        first[0] = True
        changed = x + 0
        changed[:, self.mask] = 2 * x[:, self.mask] + 1
        numbered = x + 0
        numbered[:, self.mask] = 7.0
        numbered[:, [1, 0], 2] = x.new_tensor([3.0, 4.0])
        chosen = x[:, self.weight > 0]
        return [
            self.readout(x[:, self.mask]),
            chosen.relu()[:, :, None].reshape(x.shape[0], -1),
            x[:, first],
            x[:, self.mask.any(1)],
            x[..., self.mask[0]],
            changed,
            numbered,
            x.repeat_interleave(torch.tensor([2, 0, 1]), 1),
        ]


@settings(max_examples=4, deadline=None)
@given(st.lists(st.booleans(), min_size=11, max_size=11))
def test_a_constant_mask_chooses_entries(mask):
    assert_rewritten(Masked(torch.tensor([True, *mask]).reshape(3, 4)), 3, 4)


def test_a_mask_that_depends_on_the_input_is_refused_where_it_is_made():
    with pytest.raises(UnsupportedOperation, match=r"^gt at "):
        rewrite(Function(lambda x: x[x > 0]).eval(), numbers(1, 3, 4))


def test_a_constant_that_differs_between_samples_is_refused():
    """A different number for every sample, or for another size of the batch; as one that is the same is accepted."""
    assert_rewritten(Function(lambda x: x + (x.new_ones(x.shape[0], 6) @ torch.ones(6, 6).to(x)).view(-1, 3, 2)), 3, 2)
    for constant in (
        lambda x: torch.ones(x.shape[0], 6).to(x).cumsum(0).view(x.shape[0], 3, 2),
        lambda x: torch.ones(x.shape[0], 6).to(x).sum().expand(x.shape),
    ):
        with pytest.raises(UnsupportedOperation, match=r"differs between samples|batch size"):
            rewrite(Function(lambda x, constant=constant: x + constant(x)).eval(), numbers(1, 3, 2))


@pytest.mark.parametrize("function", [lambda x: x.reshape(-1, 3), lambda x: x.relu().reshape(-1, 3, 2).flatten(0, 1)])
def test_the_target_verifier_returns_several_rows_for_a_sample(function, tmp_path):
    """An output (2b, 3) or (2b, 2) of inputs (b, 6) or (b, 12)."""
    import onnxruntime

    x = torch.randn(3, 12)
    module = Function(function).eval()
    plain = rewrite(module, x[:1], "verifier")
    assert torch.equal(plain(x), module(x))
    onnx_file.save(plain, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"input_0": x[:1].numpy()})
    assert torch.equal(torch.from_numpy(y), module(x[:1]))

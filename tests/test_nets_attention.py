"""The nets with attention against libraries that have them: equal parameters, equal outputs with equal weights."""

import math
from pathlib import Path

import pytest
import torch
import torchvision
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skipform import SkipformError, nets
from skipform.compiler.rewrite import UnsupportedOperation, rewrite
from skipform.nets.attention import (
    Attention,
    AttentionRecorder,
    Layer,
    SelfAttention,
    feed_forward,
    sinusoids,
    sinusoids_2d,
)

# torch.nn.Transformer warns of which kernels it will take
quiet = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested tensors")
TINY = {"depth": 2, "width": 16, "heads": 4}
WORDS = {"vocab_size": 50, "context": 12}
RESNET = {"name": "resnet", "depth": 18, "stages": 4, "first": "7x7", "width": 4, "option": "B"}
DETR = {"backbone": RESNET, "num_classes": 5, "queries": 7, "encoder_depth": 2, "decoder_depth": 3, "width": 16}
NARROW: dict[str, list[dict]] = {
    "transformer": [
        TINY | {"vocab_size": 50, "hidden": 32},
        TINY | {"vocab_size": 50, "source_vocab_size": 50, "hidden": 32, "norm": "pre", "skip": ["feed_forward"]},
    ],
    "bert": [TINY | WORDS, TINY | WORDS | {"norm": "pre", "skip": "none"}],
    "gpt": [TINY | WORDS, TINY | WORDS | {"norm": "post", "skip": ["attention"]}],
    "vit": [TINY | {"image_size": 8, "in_channels": 1}, TINY | {"image_size": 8, "in_channels": 1, "norm": "post"}],
    "detr": [DETR | {"heads": 4, "hidden": 32}, DETR | {"heads": 4, "hidden": 32, "skip": ["attention", "cross"]}],
}
CASES = [(name, arguments) for name, entries in NARROW.items() for arguments in entries]
IDS = [f"{name}-{i}" for name, entries in NARROW.items() for i, _ in enumerate(entries)]


def small(name: str, **arguments) -> nn.Module:
    """The net in eval mode, every parameter away from where it starts (zeros and ones hide what is left out)."""
    torch.manual_seed(0)
    net = nets.build(name, **arguments)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval()


def tokens(*shape: int, seed: int = 0, below: int = 50) -> Tensor:
    """Never 0, which is the Transformer's padding."""
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(seed))


GPT = small("gpt", **TINY, **WORDS)
TRANSLATOR = small("transformer", vocab_size=50, hidden=32, **TINY)


def inputs(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return {
        "transformer": (tokens(3, 7), tokens(3, 5, seed=1)),
        "bert": (tokens(3, 7),),
        "gpt": (tokens(3, 7),),
        "vit": (torch.randn(3, 1, 8, 8, dtype=dtype),),
        "detr": (torch.randn(2, 3, 64, 64, dtype=dtype),),
    }[name]


def flat(output: Tensor | dict) -> Tensor:
    if isinstance(output, dict):
        return torch.cat([flat(output[key]) for key in sorted(output)])
    return output.flatten()


def agree(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """float32, the same operations with the same weights: some ten layers of a few ulp, 1.2e-7, each."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * float(expected.detach().abs().max()))


def take(own: nn.Module, *theirs: nn.Module, transposed: bool = False) -> None:
    """The weights and biases of `theirs`, one below the other."""
    with torch.no_grad():
        weight = torch.cat([t.weight.T if transposed else t.weight for t in theirs])
        own.weight.copy_(weight)
        if getattr(own, "bias", None) is not None:
            own.bias.copy_(torch.cat([t.bias for t in theirs]))


def take_packed(own: nn.Module, theirs: nn.MultiheadAttention) -> None:
    """torch's attention keeps the three input maps in one tensor, as SelfAttention does and Attention does not."""
    parts = [own.qkv] if isinstance(own, SelfAttention) else [own.query, own.key, own.value]
    size = 3 // len(parts) * theirs.embed_dim
    with torch.no_grad():
        for part, weight, bias in zip(
            parts, theirs.in_proj_weight.split(size), theirs.in_proj_bias.split(size), strict=True
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    take(own.out, theirs.out_proj)


def shaken(reference: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return reference.eval()


def count(net: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad or not trained)


@quiet
@pytest.mark.parametrize(
    ("name", "variant", "reference"),
    [
        ("transformer", "torch.nn.Transformer", lambda: nn.Transformer()),
        ("bert", "BERT-base", lambda: transformers.BertModel(transformers.BertConfig())),
        ("bert", "BERT-base, masked words", lambda: transformers.BertForMaskedLM(transformers.BertConfig())),
        ("bert", "BERT-base, pre-training", lambda: transformers.BertForPreTraining(transformers.BertConfig())),
        ("gpt", "GPT-2 small", lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config())),
        ("gpt", "GPT", lambda: transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig())),
        ("vit", "ViT-B/16", lambda: torchvision.models.vit_b_16()),
        (
            "detr",
            "DETR, ResNet-50",
            lambda: transformers.DetrForObjectDetection(transformers.DetrConfig(num_labels=91)),
        ),
    ],
)
def test_the_published_net_is_as_large_as_the_librarys(name, variant, reference):
    (row,) = [row for row in nets.survey() if (row["net"], row["variant"]) == (name, variant)]
    with torch.device("meta"):
        theirs, ours = reference(), nets.build(name, **row["arguments"])
    assert count(ours) == row["parameters"] == count(theirs)


def transformer_like(theirs: nn.Transformer, **arguments) -> nn.Module:
    ours = nets.build("transformer", vocab_size=None, final_norm=True, hidden=32, **TINY, **arguments)
    for own, other in zip(ours.encoder, theirs.encoder.layers, strict=True):
        pairs = [(own.attention, other.norm1), (own.feed_forward, other.norm2)]
        take_packed(own.attention.f, other.self_attn)
        for sublayer, norm in pairs:
            take(sublayer.norm, norm)
        take(own.feed_forward.f[0], other.linear1)
        take(own.feed_forward.f[3], other.linear2)
    for own, other in zip(ours.decoder, theirs.decoder.layers, strict=True):
        pairs = [(own.attention, other.norm1), (own.cross, other.norm2), (own.feed_forward, other.norm3)]
        take_packed(own.attention.f, other.self_attn)
        take_packed(own.cross.f, other.multihead_attn)
        for sublayer, norm in pairs:
            take(sublayer.norm, norm)
        take(own.feed_forward.f[0], other.linear1)
        take(own.feed_forward.f[3], other.linear2)
    take(ours.encoder_norm, theirs.encoder.norm)
    take(ours.decoder_norm, theirs.decoder.norm)
    return ours.eval()


@quiet
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_transformer_is_torchs(norm):
    theirs = shaken(nn.Transformer(16, 4, 2, 2, 32, batch_first=True, norm_first=norm == "pre"))
    ours = transformer_like(theirs, norm=norm)
    source, target = torch.randn(3, 7, 16), torch.randn(3, 5, 16)
    present = torch.arange(7) < torch.tensor([[7], [4], [1]])
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    padded = {"src_key_padding_mask": ~present, "memory_key_padding_mask": ~present}
    with torch.no_grad():
        agree(ours(source, target), theirs(source, target, tgt_mask=causal))
        agree(ours(source, target, present), theirs(source, target, tgt_mask=causal, **padded))


def take_bert(ours: nn.Module, theirs: nn.Module) -> None:
    embeddings = theirs.embeddings
    take(ours.tokens, embeddings.word_embeddings)
    take(ours.segments, embeddings.token_type_embeddings)
    take(ours.positions, embeddings.position_embeddings)
    take(ours.norm, embeddings.LayerNorm)
    for own, other in zip(ours.layers, theirs.encoder.layer, strict=True):
        inner = other.attention.self
        take(own.attention.f.qkv, inner.query, inner.key, inner.value)
        take(own.attention.f.out, other.attention.output.dense)
        take(own.attention.norm, other.attention.output.LayerNorm)
        take(own.feed_forward.f[0], other.intermediate.dense)
        take(own.feed_forward.f[3], other.output.dense)
        take(own.feed_forward.norm, other.output.LayerNorm)


def take_words(own: nn.Module, theirs: nn.Module) -> None:
    take(own.map[0], theirs.transform.dense)
    take(own.map[2], theirs.transform.LayerNorm)
    with torch.no_grad():
        own.bias.copy_(theirs.bias)


BERT_CONFIG = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.mark.parametrize("head", ["pooled", "words", "both"])
def test_bert_is_the_librarys_under_every_head(head):
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=12, **BERT_CONFIG)
    classes = {"pooled": "BertModel", "words": "BertForMaskedLM", "both": "BertForPreTraining"}
    theirs = shaken(getattr(transformers, classes[head])(config))
    ours = nets.build("bert", head=head, **TINY, **WORDS).eval()
    take_bert(ours, theirs if head == "pooled" else theirs.bert)
    if head == "pooled":
        take(ours.head.map, theirs.pooler.dense)
    elif head == "words":
        take_words(ours.head, theirs.cls.predictions)
    else:
        take(ours.head.pooled.map, theirs.bert.pooler.dense)
        take_words(ours.head.words, theirs.cls.predictions)
        take(ours.head.next, theirs.cls.seq_relationship)
    words, segments = tokens(3, 9), torch.randint(0, 2, (3, 9))
    present = torch.arange(9) < torch.tensor([[9], [4], [1]])
    with torch.no_grad():
        plain, full = ours(words), ours(words, segments, present)
        plain_theirs = theirs(words)
        full_theirs = theirs(words, token_type_ids=segments, attention_mask=present.long())
    for actual, expected in ((plain, plain_theirs), (full, full_theirs)):
        if head == "pooled":
            agree(actual["hidden"], expected.last_hidden_state)
            agree(actual["pooled"], expected.pooler_output)
        elif head == "words":
            agree(actual, expected.logits)
        else:
            agree(actual["words"], expected.prediction_logits)
            agree(actual["next"], expected.seq_relationship_logits)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_gpt_is_the_librarys_gpt_2_with_norms_before_and_gpt_with_norms_after(norm):
    config = {"vocab_size": 50, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 4}
    if norm == "pre":
        theirs = shaken(transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)))
        words, places = theirs.transformer.wte, theirs.transformer.wpe
    else:
        theirs = shaken(transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**config)))
        words, places = theirs.transformer.tokens_embed, theirs.transformer.positions_embed
    ours = nets.build("gpt", norm=norm, **TINY, **WORDS).eval()
    take(ours.tokens, words)
    take(ours.positions, places)
    for own, other in zip(ours.layers, theirs.transformer.h, strict=True):
        take(own.attention.norm, other.ln_1)
        take(own.attention.f.qkv, other.attn.c_attn, transposed=True)
        take(own.attention.f.out, other.attn.c_proj, transposed=True)
        take(own.feed_forward.norm, other.ln_2)
        take(own.feed_forward.f[0], other.mlp.c_fc, transposed=True)
        take(own.feed_forward.f[3], other.mlp.c_proj, transposed=True)
    if norm == "pre":
        take(ours.norm, theirs.transformer.ln_f)
    text = tokens(3, 12)
    with torch.no_grad():
        agree(ours(text), theirs(text).logits)


@pytest.mark.parametrize("representation_size", [None, 24])
def test_vit_is_torchvisions_with_the_head_of_pre_training_or_without(representation_size):
    heads = {"num_classes": 7, "representation_size": representation_size}
    theirs = shaken(torchvision.models.VisionTransformer(16, 4, 2, 4, 16, 64, **heads))
    ours = nets.build("vit", image_size=16, **heads, **TINY).eval()
    with torch.no_grad():
        ours.token.copy_(theirs.class_token)
        ours.positions.copy_(theirs.encoder.pos_embedding)
    take(ours.patches, theirs.conv_proj)
    for own, other in zip(ours.layers, theirs.encoder.layers, strict=True):
        take(own.attention.norm, other.ln_1)
        take_packed(own.attention.f, other.self_attention)
        take(own.feed_forward.norm, other.ln_2)
        take(own.feed_forward.f[0], other.mlp[0])
        take(own.feed_forward.f[3], other.mlp[3])
    take(ours.norm, theirs.encoder.ln)
    if representation_size is None:
        take(ours.head, theirs.heads.head)
    else:
        take(ours.head[0], theirs.heads.pre_logits)
        take(ours.head[2], theirs.heads.head)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        agree(ours(x), theirs(x))


SUBLAYERS = ["attention.dropout", "feed_forward.dropout"]
DROPOUTS = {
    # "Attention is all you need", Section 5.4: sub-layers, sums of embeddings and positions
    "transformer": (
        {
            "position.1",
            *(f"core.encoder.0.{name}" for name in SUBLAYERS),
            *(f"core.decoder.0.{name}" for name in [*SUBLAYERS, "cross.dropout"]),
        },
        False,
    ),
    # "An image is worth 16x16 words", Section B.1: every affine map but those of queries, keys and values; sums
    "vit": ({"dropout", "layers.0.feed_forward.f.2", *(f"layers.0.{name}" for name in SUBLAYERS)}, False),
    # google-research/bert, openai/gpt-2's training configuration: embeddings, sub-layers, attention weights
    "bert": ({"dropout", *(f"layers.0.{name}" for name in SUBLAYERS)}, True),
    "gpt": ({"dropout", *(f"layers.0.{name}" for name in SUBLAYERS)}, True),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_is_where_the_paper_has_it(name):
    net = nets.build(name, **TINY | {"depth": 1, "dropout": 0.25})
    modules, on_weights = DROPOUTS[name]
    assert {key for key, m in net.named_modules() if isinstance(m, nn.Dropout) and m.p == 0.25} == modules
    assert not [key for key, m in net.named_modules() if isinstance(m, nn.Dropout) and m.p not in (0, 0.25)]
    attentions = [m for m in net.modules() if isinstance(m, SelfAttention | Attention)]
    assert {m.dropout for m in attentions} == {0.25 * on_weights}


def test_the_hidden_layer_of_vits_head_adds_an_affine_map():
    plain, deep = (count(nets.build("vit", representation_size=size)) for size in (None, 192))
    assert deep - plain == 192 * 192 + 192


def take_attention(own: nn.Module, theirs: nn.Module) -> None:
    inner = own.attention
    for part, other in zip(
        (inner.query, inner.key, inner.value, inner.out),
        (theirs.q_proj, theirs.k_proj, theirs.v_proj, theirs.o_proj),
        strict=True,
    ):
        take(part, other)


def convolutions_and_norms(net: nn.Module) -> list[nn.Module]:
    """In the order of the layers; the library registers a block's shortcut before its branch, we after."""
    named = [(key, m) for key, m in net.named_modules() if key.endswith(("convolution", "normalization"))]
    return [m for _, m in sorted(named, key=lambda item: item[0].replace(".shortcut", ".z"))]


def detr_pair() -> tuple[nn.Module, nn.Module]:
    """The library's net and ours with its weights."""
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8, 16, 32], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    body = transformers.ResNetConfig(out_features=["stage4"], **sizes)
    encoder = {"encoder_layers": 2, "encoder_ffn_dim": 32, "encoder_attention_heads": 4}
    decoder = {"decoder_layers": 3, "decoder_ffn_dim": 32, "decoder_attention_heads": 4}
    heads = {"num_queries": 7, "num_labels": 5}
    config = transformers.DetrConfig(backbone_config=body, d_model=16, **encoder, **decoder, **heads)
    theirs = shaken(transformers.DetrForObjectDetection(config))
    for buffer in theirs.buffers():
        buffer.add_(0.2 * torch.rand_like(buffer))
    ours = nets.build("detr", heads=4, hidden=32, frozen=True, **DETR).eval()
    kinds = (nn.Conv2d, torchvision.ops.FrozenBatchNorm2d)
    mine = [m for m in ours.backbone.modules() if isinstance(m, kinds)]
    for own, other in zip(mine, convolutions_and_norms(theirs.model.backbone), strict=True):
        own.load_state_dict(other.state_dict())
    model = theirs.model
    take(ours.entry, model.input_projection)
    with torch.no_grad():
        ours.queries.copy_(model.query_position_embeddings.weight)
    for own, other in zip([*ours.encoder, *ours.decoder], [*model.encoder.layers, *model.decoder.layers], strict=True):
        take_attention(own.attention.f, other.self_attn)
        take(own.attention.norm, other.self_attn_layer_norm)
        take(own.feed_forward.f[0], other.mlp.fc1)
        take(own.feed_forward.f[3], other.mlp.fc2)
        take(own.feed_forward.norm, other.final_layer_norm)
    for own, other in zip(ours.decoder, model.decoder.layers, strict=True):
        take_attention(own.cross.f, other.encoder_attn)
        take(own.cross.norm, other.encoder_attn_layer_norm)
    take(ours.norm, model.decoder.layernorm)
    take(ours.classes, theirs.class_labels_classifier)
    for own, other in zip((ours.box[0], ours.box[3], ours.box[6]), theirs.bbox_predictor.layers, strict=True):
        take(own, other)
    return theirs, ours


@pytest.mark.parametrize("padded", [False, True])
def test_detr_is_the_librarys_with_and_without_padding(padded):
    theirs, ours = detr_pair()
    images = torch.randn(2, 3, 96, 128)
    present = torch.ones(2, 96, 128, dtype=torch.bool)
    if padded:
        present[1, 64:], present[1, :, 96:] = False, False
    with torch.no_grad():
        actual = ours(images, present) if padded else ours(images)
        expected = theirs(images, present.long())
        agree(actual["logits"], expected.logits)
        agree(actual["boxes"], expected.pred_boxes)


def test_detrs_auxiliary_outputs_are_those_of_shallower_decoders():
    """As the authors' code has it; the library, asked for them, also normalises what the next layer reads."""
    net = small("detr", heads=4, hidden=32, **DETR)
    (images,) = inputs("detr")
    with torch.no_grad():
        full = net(images)
        for depth in (1, 2):
            twin = small("detr", heads=4, hidden=32, **DETR | {"decoder_depth": depth})
            twin.load_state_dict({k: v for k, v in net.state_dict().items() if k in twin.state_dict()})
            for key in ("logits", "boxes"):
                agree(full["auxiliary"][key][depth - 1], twin(images)[key])


def test_detr_with_a_frozen_resnet_50_trains_the_papers_41_million_parameters():
    body = {"name": "resnet", "depth": 50, "stages": 4, "first": "7x7", "width": 64, "option": "B"}
    with torch.device("meta"):
        net = nets.build("detr", backbone=body, frozen=True)
    assert count(net, trained=True) == 41_302_368
    assert sum(b.numel() for b in net.buffers()) == 106_240


def test_freezing_a_backbone_changes_no_output():
    free, frozen = (small("detr", heads=4, hidden=32, frozen=f, **DETR) for f in (False, True))
    state = free.state_dict()
    frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
    agree(flat(frozen(*inputs("detr"))), flat(free(*inputs("detr"))), 1e-5)
    frozen.train()
    assert torch.equal(frozen.backbone(*inputs("detr")), frozen.eval().backbone(*inputs("detr")))


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_a_step_reaches_every_parameter_and_changes_the_output(name, arguments):
    net = nets.build(name, **arguments).train()
    torch.manual_seed(1)
    for _ in range(2):
        (flat(net(*inputs(name))) - 1).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []
    net.eval()
    before = flat(net(*inputs(name)))
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    after = flat(net(*inputs(name)))
    assert bool(after.isfinite().all())
    assert not torch.equal(after, before)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_weights_survive_safetensors(name, arguments, tmp_path: Path):
    net, twin = small(name, **arguments), nets.build(name, **arguments).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(flat(twin(*inputs(name))), flat(net(*inputs(name))))


def vectors(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """What is left of a net once tokens are vectors, and a batch for it."""
    shallow = {"encoder_depth": 1, "decoder_depth": 1, "backbone": {"name": "resnet", "depth": 8, "width": 4}}
    net = small(name, **NARROW[name][0] | (shallow if name == "detr" else {}))
    x = torch.randn(3, 7, 16)
    return {
        "transformer": lambda: (net.core, (x, x)),
        "bert": lambda: (net.layers[0], (x,)),
        "gpt": lambda: (net.layers, (x,)),
    }.get(name, lambda: (net, inputs(name)))()


@pytest.mark.parametrize("name", sorted(NARROW))
def test_nets_with_attention_have_no_piecewise_linear_form(name):
    assert {row["piecewise_linear"] for row in nets.survey() if row["net"] == name} == {False}
    with pytest.raises(UnsupportedOperation):
        rewrite(*vectors(name))


@pytest.mark.parametrize("name", ["bert", "gpt", "transformer"])
def test_tokens_are_no_real_inputs_of_a_network_of_relus(name):
    with pytest.raises(SkipformError, match="floating point is accepted"):
        rewrite(small(name, **NARROW[name][0]), inputs(name))


SKIPS = [(), ("attention",), ("feed_forward",), ("attention", "feed_forward")]


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("skips", SKIPS)
def test_a_layer_is_its_formula_with_each_skip_on_or_off(norm, skips):
    torch.manual_seed(0)
    attention, map = SelfAttention(8, 2), feed_forward(8, 12, nn.ReLU())
    layer = Layer(8, attention, map, norm=norm, skip=skips, dropout=0.1).double().eval()
    start = x = torch.randn(3, 5, 8, dtype=torch.float64)
    for name in ("attention", "feed_forward"):
        part = getattr(layer, name)
        inner = part.norm(x) if norm == "pre" else x
        if name == "attention":
            q, k, v = part.f.qkv(inner).chunk(3, -1)
            heads = [
                torch.softmax(q[..., s] @ k[..., s].mT / math.sqrt(4), -1) @ v[..., s] for s in (slice(4), slice(4, 8))
            ]
            y = part.f.out(torch.cat(heads, -1))
        else:
            y = part.f[3](torch.relu(part.f[0](inner)))
        y = y + x if name in skips else y
        x = part.norm(y) if norm == "post" else y
    # float64, sums of at most 12 terms of size 1 in some six layers
    torch.testing.assert_close(layer(start), x, rtol=0, atol=1e-13)


@given(place=st.integers(0, 5000), half=st.integers(1, 8))
def test_a_wave_is_the_papers_sine_and_cosine(place, half):
    angles = [place / 10000 ** (2 * i / (2 * half)) for i in range(half)]
    expected = [f(angle) for angle in angles for f in (math.sin, math.cos)]
    actual = sinusoids(torch.tensor(place, dtype=torch.float64), 2 * half).tolist()
    assert actual == pytest.approx(expected, abs=1e-11)  # float64 angles up to 5000 carry an error of some 5000 ulp


@settings(max_examples=30)
@given(h=st.integers(1, 5), w=st.integers(1, 5), seed=st.integers(0, 99))
def test_waves_in_two_dimensions_count_the_places_that_are_present(h, w, seed):
    present = torch.rand(1, h, w, generator=torch.Generator().manual_seed(seed)) < 0.7
    actual = sinusoids_2d(present, 8, torch.float64)
    for i in range(h):
        for j in range(w):
            row, rows = present[0, : i + 1, j].sum(), present[0, :, j].sum()
            column, columns = present[0, i, : j + 1].sum(), present[0, i].sum()
            angles = [2 * math.pi * int(a) / (int(b) + 1e-6) for a, b in ((row, rows), (column, columns))]
            expected = torch.cat([sinusoids(torch.tensor(angle, dtype=torch.float64), 4) for angle in angles])
            torch.testing.assert_close(actual[0, i, j], expected, rtol=0, atol=1e-13)  # angles below 2 pi: a few ulp


@settings(max_examples=30)
@given(seen=st.integers(0, 11), seed=st.integers(0, 99))
def test_gpt_reads_nothing_that_follows(seen, seed):
    net = GPT
    one, other = tokens(1, 12, seed=seed), tokens(1, 12, seed=seed + 1000)
    mixed = torch.cat((one[:, : seen + 1], other[:, seen + 1 :]), 1)
    # equal sums; the kernel may order them otherwise where the rest differs
    torch.testing.assert_close(net(mixed)[:, : seen + 1], net(one)[:, : seen + 1], rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(seen=st.integers(0, 5), seed=st.integers(0, 99))
def test_the_decoder_reads_nothing_that_follows_so_that_it_can_go_word_by_word(seen, seed):
    source, target = tokens(1, 4, seed=seed), tokens(1, 6, seed=seed + 1)
    full = TRANSLATOR(source, target)
    part = TRANSLATOR.decode(target[:, : seen + 1], *TRANSLATOR.encode(source))
    torch.testing.assert_close(part, full[:, : seen + 1], rtol=1e-5, atol=1e-5)  # float32, a few ulp of sums of size 5


@settings(max_examples=30)
@given(padding=st.integers(0, 5), seed=st.integers(0, 99))
def test_padding_of_the_source_changes_nothing(padding, seed):
    source, target = tokens(2, 4, seed=seed), tokens(2, 3, seed=seed + 1)
    padded = torch.cat((source, torch.zeros(2, padding, dtype=torch.long)), 1)
    torch.testing.assert_close(TRANSLATOR(padded, target), TRANSLATOR(source, target), rtol=1e-5, atol=1e-5)


def test_the_embedding_is_shared_unless_the_source_has_its_own():
    shared, apart = (nets.build("transformer", vocab_size=50, source_vocab_size=s, **TINY) for s in (None, 30))
    assert count(apart) - count(shared) == 30 * 16
    assert shared.eval()(tokens(2, 4), tokens(2, 3)).shape == apart(tokens(2, 4, below=30), tokens(2, 3)).shape


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_attention_weights_are_seen_by_name_and_sum_to_one(name, arguments):
    net = small(name, **arguments)
    expected = flat(net(*inputs(name)))
    with AttentionRecorder() as recorder:
        actual = flat(net(*inputs(name)))
    agree(actual, expected)
    calls = sum(type(module).__name__ in ("SelfAttention", "Attention") for module in net.modules())
    assert len(recorder.weights) == calls
    for weights in recorder.weights:
        assert weights.dim() == 4
        assert bool((weights >= 0).all())
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_the_seen_weights_are_the_ones_paid():
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, causal=True).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    with AttentionRecorder() as recorder:
        actual = attention(x)
    value = attention.qkv(x)[..., 16:].unflatten(-1, (2, 4)).transpose(1, 2)
    by_hand = attention.out((recorder.weights[0] @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(actual, by_hand, rtol=0, atol=1e-13)  # float64, sums of 8 terms of size 1
    assert bool((recorder.weights[0].triu(1) == 0).all())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gpt", {"width": 10, "heads": 4}, "net 'gpt': width=10 is not accepted; it takes multiples of 4 (heads)"),
        ("vit", {"image_size": 30}, "net 'vit': image_size=30 is not accepted; it takes multiples of 4 (patch)"),
        ("bert", {"head": "mlm"}, "accepted: 'words' | 'pooled' | 'both'"),
        ("transformer", {"skip": ["self"]}, "net 'transformer'.skip: ['self'] is not accepted"),
        ("transformer", {"width": 3, "heads": 3}, "it takes multiples of 2 (a sine and a cosine)"),
        ("detr", {}, "net 'detr'.backbone: missing"),
        ("detr", {"backbone": {"name": "mlp"}}, "net 'detr': backbone Sequential has no stages; it takes one that has"),
        ("detr", {"backbone": RESNET, "width": 6, "heads": 2}, "it takes multiples of 4 (a sine and a cosine of row"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_that_says_what_is_accepted(name, arguments, message):
    with pytest.raises(SkipformError) as raised:
        nets.build(name, **arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_more_tokens_than_the_context_are_an_error_that_names_it(name):
    with pytest.raises(SkipformError, match="tokens: 13 in a row are not accepted; it takes at most 12"):
        nets.build(name, **TINY, **WORDS)(tokens(1, 13))


def test_an_image_of_another_size_is_an_error_that_names_the_size():
    with pytest.raises(SkipformError, match="images of 8x12 are not accepted; it takes 8x8"):
        small("vit", **NARROW["vit"][0])(torch.randn(1, 1, 8, 12))

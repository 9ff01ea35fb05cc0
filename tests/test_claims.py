"""The claims of the abstract, measured: exact copies, stated sizes, one row per net and moment."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from skipform import measure, nets
from skipform.errors import SkipformError
from skipform.files import write_json, write_json_lines
from skipform.stages import claims, cli
from skipform.training.experiment import read

CLAIMS = Path(__file__).parent.parent / "experiments" / "claims"


def built(seed, **arguments):
    """An `activation_blocks` net on images of 2 x 2 pixels, in float64."""
    block = {"name": "activation_blocks", "in_channels": 1, "image_size": 2, "num_classes": 3, **arguments}
    torch.manual_seed(seed)
    return nets.build(**block).double().eval(), block


@settings(max_examples=10, deadline=None)  # building nets and loading numba take their time
@given(
    skip=st.sampled_from(["concat", "add"]),
    activations=st.integers(1, 2),
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    state=st.sampled_from([None, 1, 3, 9]),
    seed=st.integers(0, 1000),
)
def test_an_exact_copy_with_the_other_skip_has_every_count_of_the_net(skip, activations, widths, state, seed):
    blocks = len(widths) // activations
    net, block = built(
        seed, skip=skip, activations=activations, blocks=blocks, width=widths[: blocks * activations], state=state
    )
    other, copy = claims.exact_copy(net, block)
    assert {skip, other} == {"concat", "add"}
    x = torch.randn(50, 1, 2, 2, dtype=torch.float64)
    y = net(x)
    # Ten maps in a row of sums of at most 20 terms, rounded at 2^-53: below 1e-13 of the largest value; 1e-11 is safe.
    assert (copy(x) - y).abs().max() <= 1e-11 * (1 + y.abs().max())
    planes = [measure.plane(f, x[0], x[1] - x[0], x[2] - x[0], (-1, 2, -1, 2)) for f in (net, copy)]
    assert planes[0].count == planes[1].count
    assert planes[0].pieces == planes[1].pieces
    assert measure.jacobian_rank(net, x[0]).rank == measure.jacobian_rank(copy, x[0]).rank


def test_a_copy_of_a_copy_has_the_original_blocks():
    net, block = built(0, skip="concat", activations=1, blocks=2, width=3)
    other, copy = claims.exact_copy(net, block)
    again, back = claims.exact_copy(copy, block | {"skip": other})
    assert again == "concat"
    for weight, twice in zip(net.parameters(), back.parameters(), strict=True):
        # Selecting and adding zeros rounds nothing.
        assert torch.equal(weight, twice)


def sizes(claim, scale):
    with torch.device("meta"):
        built = {label: nets.build(**block) for label, block in read(CLAIMS / f"{claim}.yaml", scale).variants.items()}
    return {label: sum(p.numel() for p in net.parameters()) for label, net in built.items()}


@pytest.mark.parametrize("scale", ["smoke", "embedded", "paper"])
@pytest.mark.parametrize(
    ("claim", "alike"),
    [("addition_concatenation", ["concat", "add"]), ("activation_blocks", ["single", "double-wide", "quadruple-wide"])],
)
def test_parameter_counts_called_equal_are_within_one_percent_and_as_the_file_states(claim, alike, scale):
    parameters = sizes(claim, scale)
    counts = [parameters[label] for label in alike]
    assert max(counts) < 1.01 * min(counts)
    head = (CLAIMS / f"{claim}.yaml").read_text().partition("\n\n")[0]
    stated = {int(number.replace(",", "")) for number in re.findall(r"\d+,?\d{3}|\d{3}", head)}
    assert set(parameters.values()) <= stated


def test_blocks_of_equal_width_and_of_equal_size_hold_as_many_relu_layers():
    for scale in ("smoke", "embedded", "paper"):
        variants = read(CLAIMS / "activation_blocks.yaml", scale).variants.values()
        assert {block["blocks"] * block["activations"] for block in variants} == {4}
        equal = [block["width"] for label, block in read(CLAIMS / "activation_blocks.yaml", scale).variants.items()
                 if not label.endswith("-wide")]  # fmt: skip
        assert len(set(equal)) == 1


def test_a_claim_has_one_row_per_net_and_moment_and_one_per_copy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(CLAIMS.parent.parent)
    runs, out = tmp_path / "runs", tmp_path / "out.json"
    config = str(CLAIMS / "addition_concatenation.yaml")
    assert (
        cli.main(["fit", "--config", config, "--scale", "smoke", "--seeds", "0", "--workers", "1", "--out", str(runs)])
        == 0
    )
    command = ["claims", str(runs), "--out", str(out), "--batch", "8", "--copies", "--workers", "1"]
    assert cli.main(command) == 0
    first = out.read_bytes()
    rows = json.loads(first)["rows"]
    assert [(r["variant"], r["copy"], r["when"]) for r in rows] == [
        (variant, copy, when)
        for variant, other in (("add", "concat"), ("concat", "add"))
        for when in ("initial", "final")
        for copy in (None, other)
    ]
    for net, copy in zip(rows[::2], rows[1::2], strict=True):
        assert [net[key] for key in ("regions", "pieces", "jacobian_rank")] == [
            copy[key] for key in ("regions", "pieces", "jacobian_rank")
        ]
        assert net["regions"] >= net["pieces"] > 1
        assert net["functional_dimension"] <= net["functional_dimension_most"] == 80  # 8 images of 10 scores
    assert not Path(f"{out}.partial").exists()
    code = (  # again in a process of its own, which needs no Lightning
        f"import sys; from skipform.stages import cli; assert cli.main({command}) == 0\n"
        "print([m for m in ('lightning', 'torchmetrics', 'torchvision', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert out.read_bytes() == first


def test_measuring_a_claim_without_runs_is_refused(tmp_path):
    with pytest.raises(SkipformError, match="no finished run"):
        claims.main(str(tmp_path), out=str(tmp_path / "out.json"))


def records_of(path, **losses):
    """Records of two seeds per variant, with the given training losses after each epoch, ten steps an epoch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [
        {
            "config": {"variant": variant, "seed": seed},
            "metrics": {"epochs": len(values), "steps": 10 * len(values), "test_error": values[-1], "higher": False},
            "history": {"epoch": list(range(1, len(values) + 1)), "train_loss": list(values)},
        }
        for variant, values in losses.items()
        for seed in range(2)
    ]
    write_json_lines(path, runs)


ENTRY = {"claim": "faster", "expected": ">", "measures": ["steps_to 0.5", "test_error"]}


def test_a_file_without_trainings_decides_from_the_records_that_it_names(tmp_path, capsys):
    records_of(tmp_path / "survey/a.jsonl", plain=[3, 2, 1], skips=[3, 0.5, 0.2])
    records_of(tmp_path / "survey/b.jsonl", skips=[0.6, 0.500001, 0.4])
    measured, out, config = tmp_path / "more.json", tmp_path / "m/faster.json", tmp_path / "faster.yaml"
    rows = [
        {"variant": v, "seed": s, "when": "final", "norm": n}
        for v, n in (("a/skips", 7), ("b/skips", 5))
        for s in (0, 1)
    ]
    write_json(measured, {"rows": rows})
    entries = [
        ENTRY | {"pairs": [["a/plain", "a/skips"], ["b/skips", "a/skips"]]},
        ENTRY | {"claim": "norms", "measures": ["norm"], "pairs": [["a/skips", "b/skips"]]},
    ]
    config.write_text(yaml.safe_dump({"runs": ["survey/a", "survey/b"], "comparisons": entries}))
    command = ["claims", str(tmp_path), "--config", str(config), "--out", str(out), "--measured", f"[{measured}]"]
    assert cli.main(command) == 0
    found = {(r["first"], r["measure"]): r for r in json.loads(out.read_text())["comparisons"]}
    never = found["a/plain", "steps_to 0.5"]
    assert (never["median_first"], never["median_second"], never["effect"]) == (None, 20, 1)
    assert found["b/skips", "steps_to 0.5"]["median_first"] == 30
    assert found["a/skips", "norm"]["shift"] == 2
    capsys.readouterr()
    assert cli.main(["verdicts", "--measures", str(out.parent)]) == 0
    printed = capsys.readouterr().out
    assert "faster: faster: open" in printed
    assert re.search(r"a/skips > b/skips +norm +7, 5 +2 +none to none +1\.00 +0\.1667 +open\*", printed)
    assert "*  too few seeds" in printed


def test_a_verdict_that_turns_on_a_second_machine_is_open(tmp_path, capsys):
    for machine, low in (("one", 0), ("two", 9)):
        records_of(tmp_path / "survey/a.jsonl", plain=[9], skips=[low])
        config = tmp_path / "equal.yaml"
        entry = ENTRY | {"expected": "=", "margin": 0, "measures": ["test_error"], "pairs": [["plain", "skips"]]}
        config.write_text(yaml.safe_dump({"runs": "survey/a", "comparisons": [entry]}))
        assert (
            cli.main(["claims", str(tmp_path), "--config", str(config), "--out", str(tmp_path / machine / "c.json")])
            == 0
        )
    capsys.readouterr()
    for options, verdict in (([], "does not hold"), (["--second", str(tmp_path / "two")], "open")):
        assert cli.main(["verdicts", "--measures", str(tmp_path / "one"), *options]) == 0
        assert f"c: faster: {verdict}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"runs": "survey/c"}, r"runs: no .*survey/c\.jsonl; there are: survey/a"),
        (
            {"comparisons": [ENTRY | {"measures": ["epochs_to 0"], "pairs": [["plain", "plain"]]}]},
            "with a loss above 0",
        ),
        (
            {"comparisons": [ENTRY | {"measures": ["test_iou"], "pairs": [["plain", "plain"]]}]},
            "test_iou is not known for plain",
        ),
    ],
)
def test_a_claim_about_what_no_record_holds_is_refused(tmp_path, changed, words):
    records_of(tmp_path / "survey/a.jsonl", plain=[1.0])
    config = tmp_path / "c.yaml"
    config.write_text(
        yaml.safe_dump({"runs": "survey/a", "comparisons": [ENTRY | {"pairs": [["plain", "plain"]]}]} | changed)
    )
    with pytest.raises(SkipformError, match=words):
        claims.main(str(tmp_path), config=str(config), out=str(tmp_path / "out.json"))

"""Every fact about data that the text of the paper states in words of its own, against the data.

Most numbers in paper/main.typ are generated. A sentence that is typed is named here, and its test fails when it is no
longer written or no longer true.
"""

import ast
import json
import math
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from statistics import median

import pytest
import yaml
from sklearn.datasets import load_digits

from skipform import nets, verdicts
from skipform.stages import measure
from skipform.theory import eight
from skipform.theory.shallow import six_group_sum

ROOT = Path(__file__).parents[1]
TEXT = " ".join((ROOT / "paper/main.typ").read_text().split())


def read(path):
    return json.loads((ROOT / path).read_text())


def experiment(name):
    return yaml.safe_load((ROOT / "experiments" / f"{name}.yaml").read_text())


def states(*sentences):
    for sentence in sentences:
        assert " ".join(sentence.split()) in TEXT, sentence


def configs(net):
    """Variant -> the config of its runs, without variant and seed."""
    lines = (ROOT / f"records/survey/{net}.jsonl").read_text().splitlines()
    found = {}
    for config in (json.loads(line)["config"] for line in lines):
        found[config["variant"]] = {key: config[key] for key in config if key not in ("variant", "seed")}
    return found


SURVEYED = sorted(path.stem for path in (ROOT / "records/survey").glob("*.jsonl"))


def test_the_digits_are_as_many_and_as_large_as_the_text_says():
    states("the 1#(sym.space.thin)797 handwritten digits of 8 × 8 pixels that come with scikit-learn")
    assert load_digits().images.shape == (1797, 8, 8)


def test_maxima_in_few_layers():
    states(
        "So $k = 1, 2, 3, 4, 5$ layers take that of 2, 5, 12, 30, 75 numbers",
        "$3^(k-1) + 2$ numbers for $k >= 2$, hence 5, 11, 29, 83",
        "$k = 1, 2, 3, 4, 5$ layers take that of 2, 8, 32, 128, 512 numbers, with rational weights",
        "With 72 ReLUs in the last layer they take that of $3 m$: 2, 6, 18, 54, 162",
        "over all different terms of each kind: 12, 12, 24, 24, 12",
        "the mean of the $m_(i j)$ and of 24 ReLUs over all orders",
        "each ReLU reads one to three of the $m_(i j)$ less as many others",
        "$k$ layers of ReLUs take the maximum of $2 dot 4^(k - 1)$ numbers, two layers that of eight",
        "Six and eight groups take more than published at every depth",
        "the maximum of $n$ numbers takes at most $ceil(log_4 (n slash 2)) + 1$ layers",
        "since $3^2 < 12$ and $3^3 < 30$",
        "have thirds, without which 32 numbers would need four layers, as $3^3 < 32$",
    )
    rows = {row["layers"]: row for row in read("measures/theorems.json")["maxima"]}
    assert {k: row["five"] for k, row in rows.items()} == {2: 5, 3: 12, 4: 30, 5: 75}
    assert {k: row["published"] for k, row in rows.items()} == {k: 3 ** (k - 1) + 2 for k in rows}
    assert {k: row["six"] for k, row in rows.items()} == {2: 6, 3: 18, 4: 54, 5: 162}
    assert {k: row["eight"] for k, row in rows.items()} == {2: 8, 3: 32, 4: 128, 5: 512}
    reached = {"five": 2, "six": 2, "eight": 2}
    for k in (2, 3, 4, 5):  # the theorems
        m = reached["five"]
        reached = {"five": 2 * m + m // 2, "six": 3 * reached["six"], "eight": 4 * reached["eight"]}
        assert all(reached[groups] == rows[k][groups] for groups in reached)
        assert min(rows[k]["six"], rows[k]["eight"]) > rows[k]["published"]
    for k in (3, 4):  # the least k with 3^k >= n layers are necessary for decimal fractions
        assert 3 ** (k - 1) < rows[k]["five"] <= 3**k
    base, terms = six_group_sum([(i,) for i in range(6)])
    kinds = Counter((len(form), abs(weight), weight > 0) for weight, form in terms)
    assert (len(base), len(terms), sorted(kinds.values())) == (12, 72, [12, 12, 24, 24])
    assert len(eight.TERMS) == 24
    assert all(len(plus) == len(minus) in (1, 2, 3) for _, plus, minus in eight.TERMS)
    weights = [*base.values(), *(weight for weight, _ in terms)]
    assert all(Fraction(weight).denominator % 3 == 0 for weight in weights)


@pytest.mark.parametrize(
    ("d", "n", "verb"), [(1, 4, "contains"), (1, 5, "does not contain"), (2, 6, "contains"), (2, 7, "does not contain")]
)
def test_the_search_for_maxima_in_two_layers(d, n, verb):
    """d = 3 takes minutes: `python paper/certificates/search.py 3 8` and `3 9`."""
    states("it does for $n = 4, 6, 8$ and $d = 1, 2, 3$, and (modulo a prime) does not for $n = 5, 7, 9$")
    program = ROOT / "paper/certificates/search.py"
    done = subprocess.run([sys.executable, program, str(d), str(n)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"F({d}) {verb} the maximum of {n} numbers")


def test_the_certificates_and_the_program_next_to_them():
    states(
        "The networks for 5, 12, 30, 75, 6, 18 and 8 numbers come as certificates",
        "at most fifty lines of code that need Python's standard library alone",
    )
    folder = ROOT / "paper/certificates"
    assert {path.stem for path in folder.glob("*.json")} == {f"max{n}" for n in (5, 12, 30, 75, 6, 18, 8)}
    source = (folder / "check.py").read_text()
    text = ast.get_docstring(ast.parse(source), clean=False)
    assert len([line for line in source.replace(text, "").splitlines() if line.strip('" ')]) <= 50
    imported = {
        name
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_what_is_not_piecewise_linear_multiplies_two_values():
    states("Attention, gates and layer normalisation all multiply two values that depend on the input.")
    reasons = {row["reason"].split()[0] for row in read("measures/grammar.json") if "reason" in row}
    assert reasons == {"scaled_dot_product_attention", "sigmoid", "layer_norm"}


def test_a_resnet_carries_little_and_a_preactivated_one_more():
    states("A ResNet does this after every block and carries little")
    rows = {row["variant"]: row for row in read("measures/grammar.json") if "after" in row}
    post, pre = rows["ResNet-110"], rows["PreResNet-110"]
    assert post["after"]["carried"] == post["before"]["held"]  # no more than the module holds
    assert pre["after"]["carried"] > post["after"]["carried"]


def test_models_with_max_pooling_become_deeper_and_no_other():
    states("Those with max pooling", "become deeper, by $ceil(log_2 n)$ layers for each pooling of $n$ numbers")
    for row in read("measures/grammar.json"):
        if "after" in row:
            deeper = row["after"]["depth"] > row["before"]["depth"]
            assert deeper == (row["before"]["max_poolings"] > 0), row["variant"]


def test_the_u_net_takes_no_smaller_image():
    states("U-Net takes no smaller image.")
    (row,) = [row for row in read("measures/grammar.json") if row["variant"] == "U-Net"]
    least = nets.build("unet").least
    assert row["inputs"] == [[1, least, least]]


@pytest.mark.parametrize("net", SURVEYED)
def test_variants_differ_in_their_nets_alone(net):
    states("The variants in a panel differ only in what their names say.")
    found = list(configs(net).values())
    rest = [{key: value for key, value in config.items() if key != "net"} for config in found]
    assert all(other == rest[0] for other in rest)
    assert {config["net"]["name"] for config in found} == {net}


@pytest.mark.parametrize("net", ["bert", "detr", "fcn", "fpn", "gpt", "transformer", "unet"])
def test_variants_of_the_nets_of_other_tasks_differ_in_their_skips_alone(net):
    states("Their variants differ in their skips and in nothing else.")
    rest = [{key: value for key, value in config["net"].items() if key != "skip"} for config in configs(net).values()]
    assert all(other == rest[0] for other in rest)


def test_the_nets_of_other_tasks_are_those():
    others = {
        net
        for net in SURVEYED
        if json.loads((ROOT / f"records/survey/{net}.jsonl").read_text().splitlines()[0])["metrics"]["shown"][0]
        != "error"
    }
    assert others == {"bert", "detr", "fcn", "fpn", "gpt", "transformer", "unet"}


def test_the_bounds_of_what_is_measured():
    states(
        "Jacobians are taken along at most 256 directions",
        "for ten fixed random combinations of their outputs",
        "The image of the segment, through 65 points",
        "as a function of the embeddings of eight tokens",
    )
    assert measure.DIRECTIONS[1] == 256
    assert measure.PATH == 65
    rows = {
        net: read(f"measures/survey/{net}.json")["rows"] for net in ("fcn", "unet", "fpn", "bert", "gpt", "transformer")
    }
    for net in ("fcn", "unet", "fpn"):
        assert all(row["directions"] <= 256 and row["line_share"] < 1 for row in rows[net]), net
    for net in ("bert", "gpt", "transformer"):
        assert all(row["line_reason"] for row in rows[net]), net


def test_the_rule_for_few_seeds():
    states(
        "Three networks against three can decide one comparison ($p >= 1 slash 20$)",
        "six against six up to 46 ($p >= 1 slash 924$)",
        "from ten shared seeds on, all signs",
    )
    assert math.comb(6, 3) == 20
    assert math.comb(12, 6) == 924
    for count, least, decided in ((1, 20, True), (2, 20, False), (46, 924, True), (47, 924, False)):
        assert (count / least <= 0.05) == decided
    assert verdicts.PAIRED == 10


def test_claims_about_runs_of_the_survey_are_marked_as_announced_afterwards():
    states("The claims of @sec-claims about survey runs were announced after these runs had been seen")
    for path in sorted((ROOT / "experiments/comparisons").glob("*.yaml")):
        runs = yaml.safe_load(path.read_text())["runs"]
        of_survey = any(run.startswith("survey/") for run in ([runs] if isinstance(runs, str) else runs))
        assert ("Announced after these runs had been seen." in path.read_text()) == of_survey, path.stem


def test_the_nets_of_the_claim_about_pooling():
    states(
        "Their number is the same for every pooling but one: the strided convolution has additional weights",
        "one convolutional network, whose variants differ only in the pooling",
    )
    variants = experiment("claims/pooling")["variants"]
    assert len({json.dumps({k: v for k, v in net.items() if k != "pool"}) for net in variants.values()}) == 1
    trained = {}
    for variant, arguments in variants.items():
        net = nets.build(**arguments, in_channels=1, num_classes=10)
        trained[variant] = sum(p.numel() for p in net.parameters() if p.requires_grad)
    strided = trained.pop("strided")
    assert len(set(trained.values())) == 1
    assert strided > trained["none"]


def test_more_pieces_do_not_mean_fewer_errors():
    """In the median over the seeds, the order of the poolings by pieces is not that by errors, either way."""
    states("Expressive power does not decide what is learnt: the median test error is")
    rows = [row for row in read("measures/claims/pooling.json")["rows"] if row["when"] == "final"]
    variants = {row["variant"] for row in rows}
    by_pieces, by_errors = (
        sorted(variants, key=lambda variant: median([row[key] for row in rows if row["variant"] == variant]))
        for key in ("pieces", "test_error")
    )
    assert by_errors not in (by_pieces, by_pieces[::-1])


def test_the_nets_of_the_claims_about_blocks():
    states(
        "Single, double, quadruple: four ReLU layers under four skips, two or one, at equal width",
        "the wide variants have about as many parameters as the single one",
        "it has the fewest ReLUs",
        "At equal width the single-activation network has the most parameters",
    )
    variants = experiment("claims/activation_blocks")["variants"]
    assert [(v["blocks"], v["activations"]) for v in variants.values()] == [(4, 1), (2, 2), (1, 4), (2, 2), (1, 4)]
    sizes = {row["variant"]: row["parameters"] for row in read("measures/claims/activation_blocks.json")["rows"]}
    assert sizes["single"] > sizes["double"] > sizes["quadruple"]
    for wide in ("double-wide", "quadruple-wide"):
        assert abs(sizes[wide] / sizes["single"] - 1) < 0.01  # one hundredth: what is called equal size
    relus = {name: sum(v["width"]) if isinstance(v["width"], list) else 4 * v["width"] for name, v in variants.items()}
    assert relus["single"] < min(relus["double-wide"], relus["quadruple-wide"])
    rows = read("measures/claims/addition_concatenation.json")["rows"]
    skips = {(row["variant"], row["copy"]): row["parameters"] for row in rows}
    assert abs(skips["add", None] / skips["concat", None] - 1) < 0.01


def test_the_plane_of_fully_connected_nets_is_three_times_as_wide():
    states("for fully connected networks on one three times as long and wide")
    margins = re.findall(r"^ +(\w+): \{.*?margin: (\d+)", (ROOT / "dvc.yaml").read_text(), re.M)
    assert dict(margins) == {
        "addition_concatenation": "1",
        "activation_blocks": "1",
    }  # 1 on both sides of a length of 1


def test_boxes_are_shown_from_the_score_on_that_the_caption_names():
    states("a score above 30 % (solid)")
    assert "THRESHOLD = 0.3\n" in (ROOT / "analysis/examples.py").read_text()


def test_the_max_pooled_net_has_more_regions_than_pieces_because_of_its_pooling():
    """The trained network with max pooling has fewer pieces than regions in the median, as the text shows."""
    states("The trained network with max pooling of @sec-abstract shows the difference")
    rows = [r for r in read("measures/claims/pooling.json")["rows"] if r["when"] == "final" and r["variant"] == "max"]
    assert all(row["pieces"] < row["regions"] for row in rows)

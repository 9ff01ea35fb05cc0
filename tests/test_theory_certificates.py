"""The certificates in paper/certificates: the program next to them proves what we write, and nothing false."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from skipform.stages import cli
from skipform.theory.certificates import CERTIFIED, FIVE, SIX, certificate, maxima, proved

FOLDER = Path(__file__).parents[1] / "paper" / "certificates"


def check(path):
    return subprocess.run([sys.executable, FOLDER / "check.py", path], capture_output=True, text=True)


def test_the_files_are_those_that_verify_writes(tmp_path):
    assert cli.main(["verify", "--certificates", str(tmp_path)]) == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in FOLDER.glob("*.json")}


@pytest.mark.parametrize("n", CERTIFIED)
def test_every_certificate_is_proved_by_both_programs(n):
    assert proved(n)
    done = check(FOLDER / f"max{n}.json")
    layers = len(certificate(n)["layers"])
    assert done.returncode == 0
    assert f"proved, the maximum of {n} in {layers} layers, " in done.stdout
    relus = {row[name]: row[f"{name}_relus"] for row in maxima() for name in ("five", "six")}
    text = f"{relus[n]} ReLUs" if n in relus else "28 ReLUs and the means of 24 over all orders"
    assert done.stdout.rstrip().endswith(text)


def altered(data, change):
    """The certificate after a change of its last equation."""
    data = json.loads(json.dumps(data))
    change(data["layers"][-1][0])
    return data


CHANGES = {
    "a weight": lambda entry: entry["terms"][-1].update(weight="-1/3"),
    "a coefficient": lambda entry: entry["terms"][0]["relu_of"][0].__setitem__(0, 5),
    "a term missing": lambda entry: entry["terms"].pop(),
    "the base": lambda entry: entry["base"][0].__setitem__(0, "1/7"),
    "the window": lambda entry: entry["window"].pop(),
    "an unknown part": lambda entry: entry["terms"][0]["relu_of"].append([0, [0, 1, 2]]),  # no layer before has it
}


def mean_of_six():
    """The maximum of six numbers as a mean over all orders, with the weights that `search.py 2 6 --weights` prints:
    of the kind of the certificate of eight, which takes seconds to check."""
    pairs = [entry for entry in certificate(8)["layers"][0] if max(entry["window"]) < 6]
    terms = [
        {"weight": "2", "relu_of": [[1, [0, 1]], [-1, [2, 3]]]},
        {"weight": "2", "relu_of": [[1, [0, 1]], [1, [0, 2]], [-1, [0, 3]], [-1, [4, 5]]]},
        {"weight": "-1/2", "relu_of": [[1, [0, 1]], [1, [0, 2]], [-1, [3, 4]], [-1, [3, 5]]]},
        {"weight": "-2", "relu_of": [[1, [0, 1]], [1, [2, 3]], [-1, [0, 2]], [-1, [4, 5]]]},
    ]
    last = {"window": [*range(6)], "mean_over_orders": True, "base": [["1", [0, 1]]], "terms": terms}
    return {"maximum_of": 6, "layers": [pairs, [last]]}


CERTIFICATES = {"five": lambda: certificate(5), "six": lambda: certificate(6), "six as a mean": mean_of_six}


@pytest.mark.parametrize("kind", CERTIFICATES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_false_certificate_is_not_proved(kind, change, tmp_path):
    path = tmp_path / "false.json"
    path.write_text(json.dumps(altered(CERTIFICATES[kind](), CHANGES[change])))
    done = check(path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(("AssertionError: (", "KeyError: ("))  # a window, or a part in none


def test_a_mean_is_no_equation_in_one_order(tmp_path):
    path = tmp_path / "six.json"
    path.write_text(json.dumps(mean_of_six()))
    assert check(path).stdout.endswith("15 ReLUs and the means of 4 over all orders\n")
    data = mean_of_six()
    del data["layers"][-1][0]["mean_over_orders"]
    path.write_text(json.dumps(data))
    assert check(path).returncode == 1


def test_without_a_certificate_the_checker_says_what_it_takes():
    done = subprocess.run([sys.executable, FOLDER / "check.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "usage: python check.py max5.json max8.json ...\n")


def test_the_table_of_maxima():
    rows = maxima()
    assert [row["layers"] for row in rows] == [2, 3, 4, 5]
    assert [row["five"] for row in rows] == [*FIVE]
    assert [row["six"] for row in rows] == [*SIX]
    assert [row["eight"] for row in rows] == [8, 32, 128, 512]
    assert [(row["five_relus"], row["six_relus"]) for row in rows[:3]] == [(13, 87), (59, 1305), (304, 13_599)]

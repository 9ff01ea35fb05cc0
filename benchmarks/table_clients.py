"""Which of twelve models a verifier reads: as exported by torch, and as the targets verifier and perceptron.

    python benchmarks/table_clients.py     the table of the README, in Markdown, half a minute on 2 cores

The models are those of tests/verifier_models.py, and one of which maraboupy ignores the padding (its issue 614).

yes        at an input, the verifier computes what the model does, to 1e-4
wrong      it computes something else
refused    it does not take the file
no answer  it has not ended after two minutes

maraboupy 2.0.0 has wheels for CPython up to 3.11 on Linux.
"""

import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for the models

from verifier_models import PADDED, PADDED_SHAPE, TWELVE
from verifier_models import shape_of as shape_of_twelve

from skipform.compiler import onnx_file
from skipform.compiler.rewrite import rewrite

MODELS = TWELVE | {"padded max pooling": PADDED}
FORMS = ("as exported", "target verifier", "target perceptron")
# float32 files differ from the model by 1e-5 relative (test_targets.py), and its values are below 10.
READING = 1e-4


def shape_of(name: str) -> tuple[int, ...]:
    """Of one input."""
    return PADDED_SHAPE if MODELS[name] is PADDED else shape_of_twelve(name)


def write(name: str, form: str, path: Path) -> None:
    """The model in one of FORMS as an ONNX file."""
    model, x = MODELS[name].float(), torch.zeros(1, *shape_of(name))
    if form == "as exported":  # opset 11: maraboupy refuses later ones for more operators
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, x, path, dynamo=False, opset_version=11)
    else:
        target = form.removeprefix("target ")
        onnx_file.save(rewrite(model, x, target, box=(-0.5, 1.0) if target == "perceptron" else None), path)


def within(seconds: float, ask: Callable[[], Any]) -> Any:
    """ask() in a process of its own (forked); None if that has not ended after this time.

    Marabou compares its own time limit between steps only, and a step may never end: one query of
    tests/test_marabou.py (gather, perceptron), which is answered in 0.1 s, does not end in about one run of fifty. It
    holds Python's lock meanwhile, and catches SIGTERM.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(ask()))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else None
    finally:
        process.kill()
        process.join()


def answer(path: Path, model: nn.Module, shape: tuple[int, ...]) -> str:
    """yes, wrong or refused."""
    from maraboupy import Marabou

    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1)) * 1.5 - 0.5
    options = Marabou.createOptions(verbosity=0, timeoutInSeconds=60)
    try:
        (y,) = Marabou.read_onnx(str(path)).evaluateWithMarabou([x.numpy()], f"{path}.log", options)
    except (AssertionError, ValueError, RuntimeError, NotImplementedError, IndexError, KeyError):
        return "refused"
    with torch.no_grad():
        expected = model(x)
    return "yes" if abs(torch.from_numpy(y).reshape(-1) - expected.reshape(-1)).max() <= READING else "wrong"


def row(name: str) -> str:
    """One line of the table."""
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)  # maraboupy leaves a query that it cannot take in the working directory
        try:
            for form in FORMS:
                path = Path(folder) / "net.onnx"
                write(name, form, path)
                model, shape = MODELS[name].float(), shape_of(name)
                answers.append(within(120, partial(answer, path, model, shape)) or "no answer")
        finally:
            os.chdir(before)
    return f"| {name} | {' | '.join(answers)} |"


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(f"| maraboupy 2.0.0 reads | {' | '.join(FORMS)} |")
        print("|---|---|---|---|")
        for name in MODELS:
            print(row(name), flush=True)


if __name__ == "__main__":
    main()

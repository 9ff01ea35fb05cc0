"""`skipform dashboard`: a Weights & Biases workspace and a report over all runs, a section per claim and per task."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from skipform import tasks
from skipform.errors import SkipformError
from skipform.files import fields, read_yaml, write_json
from skipform.outputs import check_file
from skipform.training import tracking
from skipform.training.experiment import Experiment, read

NAME = "skipform"
# What the runs of the stages have in their summaries, see `training.stage_runs`.
EXPRESSIVENESS = ("regions", "pieces", "jacobian_rank", "feature_rank", "functional_dimension")
EXAMPLES = {  # task -> keys of the pictures and tables that `skipform examples` logs for it
    "classify": ["classes"],
    "segment": ["masks"],
    "detect": ["boxes"],
    "language_model": ["attention/0", "attention/1"],
    "translate": ["attention/0", "attention/1"],
}
TEXTS = ("language_model", "translate")  # tasks whose examples are texts


def main(
    *,
    entity: str | None = None,
    project: str | None = None,
    scale: str = "embedded",
    out: str = "build/dashboard.json",
    root: str = ".",
) -> None:
    """Make the workspace and the report of a project in W&B, and write both to a JSON file.

    Without a key, only the file is written. A second call makes a second workspace and a second report.

    Args:
        entity: The user or team; by default WANDB_ENTITY, or the user whose key it is.
        project: By default WANDB_PROJECT, or skipform.
        scale: The scale of the experiments.
        out: The JSON file to write.
        root: The folder that holds experiments/.
    """
    check_file(out, suffixes=[".json"])
    entity = entity or os.environ.get("WANDB_ENTITY", "")
    project = project or os.environ.get("WANDB_PROJECT", "skipform")
    tracking.ask("auto")
    online = tracking.mode_of("auto") in ("online", "shared") and tracking.key() is not None
    if online and not entity:
        import wandb

        entity = wandb.Api().default_entity or ""
    groups = groups_of(Path(root), scale)
    figures = [path.stem.removeprefix("fig_") for path in sorted(Path(root, "paper/generated").glob("fig_*.svg"))]
    workspace, report = workspace_of(entity, project, groups, figures), report_of(entity, project, groups)
    views: dict[str, Any] = {"workspace": workspace, "report": report}
    write_json(out, {name: view._to_model().model_dump(mode="json", by_alias=True) for name, view in views.items()})
    print(f"{out}: a workspace of {len(workspace.sections)} sections and a report")
    if not online:
        print(
            "not made in W&B, for want of a key or of a connection: upload the runs with `wandb login` and"
            " `wandb sync wandb/offline-*`, then run this command again"
        )
        return
    for view in views.values():
        view.save()
        print(view.url)


class Group(NamedTuple):
    """The experiments of a claim or of a task. key: the name of the claim or of the task."""

    key: str
    title: str
    questions: list[str]
    is_claim: bool
    measures: list[str]  # of a claim: those of its comparisons
    scores: list[str]  # of a task: those that its tables show


def groups_of(root: Path, scale: str) -> list[Group]:
    """A group per claim and per task of the experiments.

    Raises:
        SkipformError: there are no experiments in `root`.
    """
    files = {kind: sorted((root / "experiments" / kind).glob("*.yaml")) for kind in ("claims", "survey")}
    if not all(files.values()):
        raise SkipformError(f"--root {root}: no experiments/ in it; accepted: a checkout of the project")
    experiments = {kind: [read(file, scale) for file in paths] for kind, paths in files.items()}
    groups = [
        _of_claim(experiment.file, [measure for c in experiment.comparisons for measure in c.measures])
        for experiment in experiments["claims"]
    ]
    for file in sorted((root / "experiments" / "comparisons").glob("*.yaml")):  # claims about runs of the others
        announced = fields(read_yaml(file), {"comparisons": list}, str(file))["comparisons"]
        groups.append(_of_claim(file, [measure for c in announced for measure in c["measures"]]))
    for task in tasks.names():
        own = [experiment for experiment in experiments["survey"] if experiment.task["name"] == task]
        if own:
            groups.append(_of_task(task, own))
    return groups


def _of_claim(file: Path, measures: list[str]) -> Group:
    title = f"Claim: {file.stem.replace('_', ' ')}"
    return Group(file.stem, title, [tracking.question(file)], True, [*dict.fromkeys(measures)], [])


def _of_task(task: str, experiments: list[Experiment]) -> Group:
    kind = tasks.kind(task)
    scores = [*dict.fromkeys(experiment.task.get("shown", kind.MAIN_SCORE[0]) for experiment in experiments)]
    questions = [f"{experiment.name}: {tracking.question(experiment.file)}" for experiment in experiments]
    return Group(task, f"Task: {task.replace('_', ' ')}", questions, False, [], scores)


def workspace_of(entity: str, project: str, groups: list[Group], figures: list[str]) -> ws.Workspace:
    """The workspace. Its sections draw all selected runs, so that a section is made of metrics that are its own.

    figures: the names of the paper's figures; without any, as before `make figures`, there is no section of them.
    """
    pictures: list[Any] = [wr.MediaBrowser(title=name, media_keys=[f"figure/{name}"]) for name in figures]
    sections = [
        ws.Section(
            name="Statements",
            panels=[_table("statements"), _table("constructors")],
            is_open=True,
        ),
        *(ws.Section(name=group.title, panels=panels_of(group), is_open=group.is_claim) for group in groups),
        ws.Section(name="Expressiveness", panels=_expressiveness()),
        ws.Section(name="Training", panels=[_curve(f"{split}/loss") for split in ("train", "test")]),
        ws.Section(name="Rewriting", panels=[_table("grammar")]),
        *([ws.Section(name="Figures of the paper", panels=pictures)] if pictures else []),
        ws.Section(name="Tables of the paper", panels=[_table(f"table/{name}") for name in TABLES]),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[expr.Metric("Group"), expr.Config("variant")]),
    )


TABLES = ("survey", "verdicts", "expressiveness", "training")  # paper/generated/table_*.csv


def report_of(entity: str, project: str, groups: list[Group]) -> wr.Report:
    """The report: a heading per claim and per task, and under it the panels of its own runs."""
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.H1("Statements"),
        wr.P("Every statement of the paper, checked in float64, in exact fractions and by proof."),
        _grid("verify", [expr.Metric("JobType") == "verify"], [_table("statements")]),
    ]
    for group in groups:
        blocks += [wr.H1(group.title), wr.UnorderedList(list(group.questions))]
        if group.is_claim:
            of_claim = [expr.Metric("Group") == f"claims/{group.key}"]
            blocks += [
                _grid("measures", [*of_claim, expr.Metric("JobType") == "claims"], panels_of(group)),
                _grid("training", [*of_claim, expr.Metric("JobType") == "fit"], [_curve("test/error")]),
            ]
        else:
            of_task = [expr.Tags().isin([group.key])]
            blocks += [
                _grid("training", [*of_task, expr.Metric("JobType") == "fit"], _curves(group)),
                _grid("examples", [*of_task, expr.Metric("JobType") == "examples"], _examples(group)),
            ]
    blocks += [
        wr.H1("Expressiveness"),
        _grid("measure", [expr.Metric("JobType") == "measure"], _expressiveness()),
        wr.H1("Rewriting"),
        _grid("grammar", [expr.Metric("JobType") == "grammar"], [_table("grammar")]),
    ]
    description = "Pooling layers and skip connections as affine maps and concatenated activation functions"
    return wr.Report(entity=entity, project=project, title=NAME, description=description, blocks=blocks)


def _grid(name: str, filters: list[expr.FilterExpr], panels: list[Any]) -> wr.PanelGrid:
    """Panels over the runs that meet all filters, of the report's own project; the seeds of a variant are a group."""
    runs = wr.Runset(name=name, filters=filters, groupby=["run.group", "config.variant"])
    return wr.PanelGrid(runsets=[runs], panels=panels)


def panels_of(group: Group) -> list[Any]:
    """The panels of a group, from metrics that no other group has."""
    if not group.is_claim:
        return [*_curves(group), *_examples(group)]
    bars = [_bar(f"{group.key}/{measure}", measure) for measure in group.measures]
    return [*bars, _table(f"{group.key}/verdicts")]


def _curves(group: Group) -> list[Any]:
    return [_curve(f"{split}/{score}") for score in group.scores for split in ("test", "train")]


def _examples(group: Group) -> list[Any]:
    texts = [_table("texts")] if group.key in TEXTS else []
    return [wr.MediaBrowser(media_keys=EXAMPLES[group.key]), *texts]


def _expressiveness() -> list[Any]:
    score = wr.ScatterPlot(
        title="score over regions", x=wr.SummaryMetric("regions"), y=wr.SummaryMetric("score"), log_x=True
    )
    return [*(_bar(key, key) for key in EXPRESSIVENESS), score]


def _curve(metric: str) -> wr.LinePlot:
    """A metric over the epochs, a line per variant: the mean over its runs, with their range."""
    return wr.LinePlot(
        title=metric,
        x="epoch",
        y=[metric],
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=100,
    )


def _bar(metric: str, title: str) -> wr.BarPlot:
    return wr.BarPlot(title=title.replace("_", " "), metrics=[wr.SummaryMetric(metric)], max_bars_to_show=100)


def _table(name: str) -> wr.WeavePanelSummaryTable:
    return wr.WeavePanelSummaryTable(table_name=name)

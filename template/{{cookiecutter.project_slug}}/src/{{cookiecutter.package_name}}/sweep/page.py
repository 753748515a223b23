"""Plots of a study as one HTML file that needs no network."""

import html
import warnings
from string import Template

import optuna
from optuna import visualization
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

#: Complete trials from which on it makes sense to ask which setting matters.
ENOUGH_FOR_IMPORTANCE = 10

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<style>
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }
h2 { margin-bottom: 0; }
</style>
<script>${plotly}</script>
</head>
<body>
<h1>${title}</h1>
<p>${summary}</p>
${plots}
</body>
</html>
""")


def make_page(study: optuna.Study, metric: str) -> str:
    """Draw how the study went, which settings mattered, and what good trials have in common.

    Args:
        study: to draw.
        metric: that it compares.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    names = dict.fromkeys(name for trial in complete for name in trial.params)
    varied = [name for name in names if len({trial.params.get(name) for trial in complete}) > 1]
    plots = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if complete:
            history = visualization.plot_optimization_history(study, target_name=metric)
            plots.append(("What the trials came to", history))
        if any(trial.intermediate_values for trial in trials):
            plots.append((f"{metric} over validations", visualization.plot_intermediate_values(study)))
        if varied:
            parallel = visualization.plot_parallel_coordinate(study, params=varied, target_name=metric)
            plots.append(("Settings side by side", parallel))
            plots.append(("Each setting", visualization.plot_slice(study, params=varied, target_name=metric)))
        if len(complete) >= ENOUGH_FOR_IMPORTANCE and len({trial.value for trial in complete}) > 1:
            importance = visualization.plot_param_importances(study, target_name=metric)
            plots.append(("Which settings mattered", importance))
    drawn = []
    for title, figure in plots:
        figure.update_layout(title=None, margin={"t": 30})
        drawn.append(f"<h2>{html.escape(title)}</h2>\n{figure.to_html(full_html=False, include_plotlyjs=False)}")
    states = [state for state in TrialState if any(trial.state == state for trial in trials)]
    counts = ", ".join(f"{sum(t.state == state for t in trials)} {state.name.lower()}" for state in states)
    return PAGE.substitute(
        title=html.escape(f"Sweep {study.study_name}"),
        summary=html.escape(f"{study.direction.name.lower()} {metric}; trials: {counts or 'none'}."),
        plotly=get_plotlyjs(),
        plots="\n".join(drawn) or "<p>No trial has reported anything yet.</p>",
    )

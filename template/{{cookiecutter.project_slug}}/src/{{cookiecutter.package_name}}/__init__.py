"""{{cookiecutter.project_name}}.

Data, networks, tasks and what `train.py`, `eval.py` and `predict.py` do with them.
"""

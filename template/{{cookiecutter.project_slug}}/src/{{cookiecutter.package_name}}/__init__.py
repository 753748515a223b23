"""{{cookiecutter.project_name}}: data, networks, tasks and what `train.py`, `eval.py` and `predict.py` do with them."""

"""Data modules: where examples come from and how they are split."""

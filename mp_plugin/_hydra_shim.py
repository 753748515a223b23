from mp_plugin.hydra_search_path import MpPluginSearchPath  # noqa: F401  (installed into hydra_plugins/ for Hydra 1.3)

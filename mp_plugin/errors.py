"""Every exception of this package; each is also the built-in that a caller would catch."""


class MpPluginError(Exception):
    """The base of all errors raised by mp_plugin."""


class ConfigError(MpPluginError, ValueError):
    """A setting is outside what is accepted; the message names the field, what came in and what is accepted."""


class UnsupportedError(MpPluginError, RuntimeError):
    """This device, optimizer or model cannot do what was asked for."""


class CheckpointError(MpPluginError, ValueError):
    """A checkpoint's precision state is damaged or belongs to something else; nothing of it was loaded."""


class TrainingDivergedError(MpPluginError, RuntimeError):
    """Step after step had non-finite gradients, and nothing is left to try."""


class TelemetryError(MpPluginError, ValueError):
    """A file of recorded incidents is damaged, or from another release."""

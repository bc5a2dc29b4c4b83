"""What can be wrong with a model on disk, each said in one sentence."""


class ConfigError(ValueError):
    """A configuration that is unknown, incomplete or contradicts itself."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another shape than its configuration."""

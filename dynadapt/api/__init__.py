"""What `import dynadapt` offers: train an adapter, load one, answer images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from dynadapt import train
from dynadapt.api.predictor import Predictor, load
from dynadapt.commands import config_file
from dynadapt.errors import ConfigError

__all__ = ["Predictor", "adapt", "load"]


def adapt(
    config: str | Path | ConfigDict,
    workdir: str | Path,
    overrides: Mapping[str, Any] | None = None,
) -> Predictor:
    """Trains an adapter as `dynadapt train` does, and gives the model that it leaves.

    Called again it goes on from the last checkpoint, and a run that is complete is only loaded.

        model = dynadapt.adapt("quickstart:method=lora", "runs/lora", {"optim.lr": 0.01})
        print(model.card["method"], model.metrics)

    Args:
        config: the name of a config that comes with the package or a file, with its arguments
            behind a colon; or a config, which stays as it is.
        workdir: folder of the run.
        overrides: values of fields, by names such as `optim.lr`.

    Raises:
        DynadaptError: for whatever can be mended, in a sentence; nothing is written before the
            checks.
        Preempted: after an interrupt, with the state saved.
    """
    train.run(_config(config, overrides or {}), Path(workdir))
    return load(workdir)


def _config(given: Any, overrides: Mapping[str, Any]) -> ConfigDict:
    texts = [f"--config.{name}={value}" for name, value in overrides.items()]
    if isinstance(given, str | Path):
        return config_file.load(str(given), texts)
    if not isinstance(given, ConfigDict | FrozenConfigDict):
        raise ConfigError(
            f"a config is a name, a file or what config.default(…) made, not {type(given).__name__}"
        )
    return config_file.overridden(ConfigDict(given).copy_and_resolve_references(), texts)

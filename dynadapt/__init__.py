"""Input-conditioned adapters for frozen vision foundation models.

    import dynadapt

    model = dynadapt.adapt("quickstart:method=lora", "runs/lora")  # or, of a run that is there:
    model = dynadapt.load("runs/lora")
    model.predict(["photo.jpg"])

Nothing is imported before it is asked for, so that the version can be read without starting JAX.
"""

__version__ = "0.1.0"
__all__ = ["Predictor", "adapt", "load"]

TYPE_CHECKING = False
if TYPE_CHECKING:  # what `__getattr__` gives
    from dynadapt.api import Predictor, adapt, load


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dynadapt import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

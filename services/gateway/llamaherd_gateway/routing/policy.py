"""What whoever runs the herd has decided: `models`, and the gateway's `aliases` and `default_model`. May change."""

from collections.abc import Callable, Mapping

from llamaherd_shared.model_spec import Models, ModelSpec


class Policy:
    """One for all parts of a gateway."""

    def __init__(self, models: Models, *, aliases: Mapping[str, str] = {}, default_model: str | None = None) -> None:
        self.on_change: list[Callable[[], None]] = []
        """Called after every `replace`."""
        self.replace(models, aliases=aliases, default_model=default_model)

    def replace(self, models: Models, *, aliases: Mapping[str, str], default_model: str | None) -> None:
        """From now on this holds."""
        self.aliases: Mapping[str, str] = {**models.aliases, **aliases}
        """Alias, or pattern of aliases -> model. Those of the gateway's own settings count more."""
        self.default_model = default_model
        """What answers to names that mean nothing."""
        self._models = models
        self._specs: dict[str, ModelSpec] = {}
        for listener in self.on_change:
            listener()

    def of(self, model: str) -> ModelSpec:
        """What holds for a model of the herd."""
        found = self._specs.get(model)
        if found is None:
            found = self._specs[model] = self._models.spec(model)
        return found

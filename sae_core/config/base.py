"""What every configuration has: strictness, fields that JSON leaves out at their defaults, and types of numbers."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from sae_core.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=1, le=10**13)]
"""More are a mistake, and would not be cached anywhere."""


def require(condition: object, message: str) -> None:
    """Raise a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys are errors, types are not coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    other_names: ClassVar[Mapping[str, str]] = {}
    """Further names that definitions may use for fields, and the names of the fields."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """Fields that JSON lacks where they have their defaults, beside those of base classes: run ids stay those of before there were such.
    They are listed in `records.LEFT_OUT`."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        names = {name for cls in type(self).__mro__ for name in vars(cls).get("left_out", ())}
        fields = type(self).model_fields
        return {
            name: value
            for name, value in serialize(self).items()
            if name not in names or getattr(self, name) != fields[name].get_default(call_default_factory=True)
        }

    def changed(self, *fields: str) -> dict[str, Any]:
        """Those of `fields` that differ from their defaults: what a rule refuses where they have no effect. Defaults stay silent."""
        return {name: value for name in fields if (value := getattr(self, name)) != type(self).model_fields[name].default}

"""The base of what travels as JSON inside an experiment's plan."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from openfl_audio.errors import DefinitionError
from openfl_audio.protocol.codec import describe_faults

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class ToldInASentence(ModelMetaclass):
    """Metaclass of what notebooks write: a fault in it is a DefinitionError of one sentence, and no traceback."""

    def __call__(cls, *args: Any, **values: Any) -> Any:  # noqa: N805
        """Return a new object. Raises DefinitionError, which names class and field."""
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise DefinitionError(f"{cls.__name__}: {describe_faults(error)}") from None


class Part(BaseModel, metaclass=ToldInASentence):
    """Base of the parts of a plan: frozen, without unknown keys, and finite, as JSON has no infinity.

    Raises DefinitionError, which names class and field, for values that it does not take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

"""Records: immutable named values.

At every container stop, `dataclasses` would take 7 ms for its import and six classes. Type checkers treat records as
dataclasses; at run time there is only this class.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: bool) -> Callable[[type], type]:
        return lambda cls: cls


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """The base of a record. Its annotations are its fields, and a value given there is the default.

    Args:
        values: of the fields, by name.

    Raises:
        TypeError: a field without a default is missing, or there is no such field.
    """

    def __init__(self, **values: Any) -> None:
        kind = type(self)
        for field in kind.__annotations__:
            if field not in values:
                if not hasattr(kind, field):
                    raise TypeError(f"{kind.__name__} needs {field}")
                values[field] = getattr(kind, field)
        if len(values) > len(kind.__annotations__):
            raise TypeError(f"{kind.__name__} has no {sorted(values.keys() - kind.__annotations__.keys())}")
        self.__dict__.update(values)

    def replace(self, **values: Any) -> Self:
        """Return the same record with other values of some fields, by name."""
        return type(self)(**{**self.__dict__, **values})

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be removed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        # Not in the order of the values, which is that of the call.
        return hash(tuple(self.__dict__[field] for field in type(self).__annotations__))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

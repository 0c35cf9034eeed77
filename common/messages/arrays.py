"""Numbers of one kind in one block of memory: token ids and log-probabilities of wire types.

A group of 8 answers of 256 tokens is some 5,000 numbers. As Python objects they made the group
210 kB, and were most of the time that reading it took; as arrays they make it 46 kB. They travel as
JSON lists of numbers, which anybody can read, or, under `model_dump_json(context=PACKED)`, as
URL-safe base64 of little-endian bytes. Reading takes both.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar, Self, TypeVar, overload

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreConfig, SchemaSerializer, SchemaValidator, core_schema

PACKED: Mapping[str, str] = {"arrays": "base64"}
"""Serialization context under which arrays become base64; without it, lists of numbers."""

# pydantic's base64 takes a fifth of binascii's time and checks the alphabet.
_BASE64 = CoreConfig(val_json_bytes="base64", ser_json_bytes="base64")
_DECODER = SchemaValidator(core_schema.bytes_schema(), _BASE64)
_ENCODER = SchemaSerializer(core_schema.bytes_schema(), _BASE64)

T = TypeVar("T", int, float)


class _NumberArray(Sequence[T]):
    """Immutable; equal to any list or tuple of the same numbers; its slices are tuples."""

    __slots__ = ("_numbers",)
    _numbers: "array[T]"

    typecode: ClassVar[str]
    """Of `array.array`; four bytes a number."""
    item: ClassVar[core_schema.CoreSchema]
    """What a number of a list has to be."""
    wanted: ClassVar[str]

    def __init__(self, numbers: Iterable[T] = ()) -> None:
        """Keep what four bytes hold of each number.

        Raises:
            ValueError: a number is out of range, or not finite.
            TypeError: something is no number.
        """
        try:
            self._numbers = array(self.typecode, numbers)
        except OverflowError as error:
            raise ValueError(f"{error}, wanted {self.wanted}") from error
        self._assert_sound()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Of little-endian numbers.

        Raises:
            ValueError: they are no whole numbers of four bytes, or not finite.
        """
        if len(raw) % 4:
            raise ValueError(f"found {len(raw)} bytes, wanted {cls.wanted}, four bytes each")
        made = cls.__new__(cls)
        made._numbers = _swapped_on_big_endian(array(cls.typecode, raw))
        made._assert_sound()
        return made

    def to_bytes(self) -> bytes:
        """Little-endian."""
        return _swapped_on_big_endian(self._numbers).tobytes()

    def to_buffer(self) -> bytearray:
        """A copy in the machine's byte order, for `torch.frombuffer`."""
        return bytearray(self._numbers)

    def _assert_sound(self) -> None:
        """Raises: ValueError."""

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[T]:
        return iter(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        found = self._numbers[index]
        return tuple(found) if isinstance(found, array) else found

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def count(self, value: Any) -> int:
        """How often a number stands in it."""
        return self._numbers.count(value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _NumberArray):
            return bool(self._numbers == other._numbers)
        if isinstance(other, tuple | list):
            return tuple(self._numbers) == tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._numbers))  # as the tuple that it is equal to

    def __repr__(self) -> str:
        return repr(tuple(self._numbers))

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            cls._read,
            core_schema.list_schema(cls.item),
            serialization=core_schema.plain_serializer_function_ser_schema(
                cls._write, info_arg=True
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """A list of numbers: base64 is for those who share this file."""
        return handler(core_schema.list_schema(cls.item))

    @classmethod
    def _read(cls, value: Any, read_list: ValidatorFunctionWrapHandler) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            return cls(read_list(value))
        try:
            raw = _DECODER.validate_python(value)
        except ValidationError as error:
            why = error.errors()[0]["msg"].rstrip(".")
            raise ValueError(f"{why}; wanted {cls.wanted}, as a list or base64") from None
        return cls.from_bytes(raw)

    def _write(self, info: SerializationInfo) -> "str | list[T] | Self":
        if not info.mode_is_json():
            return self
        if info.context == PACKED:
            return str(_ENCODER.to_python(self.to_bytes(), mode="json"))
        return self._numbers.tolist()


class Int32Array(_NumberArray[int]):
    """Token ids."""

    __slots__ = ()
    typecode = "i"
    item = core_schema.int_schema(ge=-(2**31), le=2**31 - 1)
    wanted = "integers of 32 bits"


class Float32Array(_NumberArray[float]):
    """Log-probabilities; rounded when they are set, so that what is read is what was sent."""

    __slots__ = ()
    typecode = "f"
    item = core_schema.float_schema(allow_inf_nan=False)
    wanted = "finite numbers of 32 bits"

    def _assert_sound(self) -> None:
        # Float32 numbers cannot add up to infinity in float64.
        if not isfinite(sum(self._numbers)):
            raise ValueError(f"found a number that is not finite in float32, wanted {self.wanted}")


def _swapped_on_big_endian(numbers: "array[T]") -> "array[T]":
    if sys.byteorder == "little":
        return numbers
    swapped = numbers[:]
    swapped.byteswap()
    return swapped

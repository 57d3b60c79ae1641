"""What the bodies of all requests have in common."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_ITEMS = 100_000
"""The longest list that is read at all. Beyond it, and from the first wrong item on, nothing more is looked at: a list
of wrong items would otherwise cost an error for each."""


def _whole(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a character (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
ITEMS = Field(fail_fast=True, max_length=MOST_ITEMS)
Texts = Annotated[list[Text], ITEMS]


class Body(BaseModel):
    """A field that is not known is an error, and "true" is not a bool."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, fields: Any) -> Any:
        known = cls.model_fields
        if isinstance(fields, dict) and not fields.keys() <= known.keys():
            unknown = next(name for name in fields if name not in known)
            raise ValueError(f"unknown field {unknown!r}; the fields are {', '.join(known)}")
        return fields

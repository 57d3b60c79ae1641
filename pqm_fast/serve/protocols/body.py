"""What the bodies of all requests have in common."""

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """A field that is not known is an error, and "true" is not a bool."""

    model_config = ConfigDict(extra="forbid", strict=True)

"""The reward models of verl 0.9: vLLM's `POST /classify`, and SGLang's `POST /v1/embeddings`."""

import struct
from base64 import b64encode
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from pqm_fast.serve.protocols.body import Body, Text, Texts
from pqm_fast.serve.protocols.vllm import envelope
from pqm_fast.serve.service import Service


class _Conversations(Body):
    model: Text | None = None
    input: Text | Texts = Field(min_length=1)
    """A question and its solution as one text, written as --conversation says; or several such texts."""
    user: Text | None = None


class ClassifyRequest(_Conversations):
    use_activation: bool | None = None
    """Has no effect: the answer is a probability."""


class EmbeddingsRequest(_Conversations):
    encoding_format: Literal["float", "base64"] = "float"


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    async def rewards(body: _Conversations) -> list[float]:
        service.check_model(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        service.check_count(len(texts))
        return (await service.rewards([service.conversation.split(text) for text in texts]))[0]

    @router.post("/classify")
    async def classify(body: ClassifyRequest) -> JSONResponse:
        """The reward of each input, as the only probability."""
        data = [
            {"index": number, "label": "LABEL_0", "probs": [reward], "num_classes": 1}
            for number, reward in enumerate(await rewards(body))
        ]
        return JSONResponse(envelope("classify", service, data, 0))

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest) -> JSONResponse:
        """The reward of each input, as an embedding of one number."""

        def written(reward: float) -> Any:
            return [reward] if body.encoding_format == "float" else b64encode(struct.pack("<f", reward)).decode()

        data = [
            {"index": number, "object": "embedding", "embedding": written(reward)}
            for number, reward in enumerate(await rewards(body))
        ]
        return JSONResponse(envelope("embd", service, data, 0))

    return router

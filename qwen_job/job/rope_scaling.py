"""model.rope_scaling: positions beyond a model's own length."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qwen_job.job.types import Positive, Strict


class RopeScaling(Strict):
    """YaRN for rows beyond a model's own length. ``rope_scaling: 4`` is short for ``rope_scaling: {factor: 4}``."""

    rope_type: Literal["yarn"] = Field("yarn", description="The method; model cards also write it as type")
    factor: Annotated[float, Field(gt=1, le=64, strict=False)] = Field(
        description="How many times the model's own length positions shall reach"
    )
    original_max_position_embeddings: Positive | None = Field(
        None, description="The length to scale; default: the model's own, as Qwen's cards have it (32768 for Qwen3)"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"factor": value}
        if isinstance(value, dict) and "type" in value and "rope_type" not in value:
            return {"rope_type" if name == "type" else name: item for name, item in value.items()}
        return value

"""The host's own metrics and encoder, registered through the same hooks as any plugin's."""

from collections.abc import Iterable

from mmrec_lmm.api import EncoderSpec, MetricSpec, hookimpl

from .metrics import METRICS


@hookimpl
def mmrec_register_metrics() -> Iterable[MetricSpec]:
    return METRICS


@hookimpl
def mmrec_register_encoders() -> Iterable[EncoderSpec]:
    return [
        EncoderSpec(
            name="basic",
            cls="mmrec_lmm.builtin.basic:BasicEncoder",
            config="mmrec_lmm.builtin.basic:BasicConfig",
            modalities=("image", "text"),
            weights_id="mmrec_lmm.builtin.basic:weights_id",
            summary="no weights: a downscaled image, hashed character n-grams of the text",
            dims={"image": 384, "text": 1024},
            licence="Apache-2.0",
        )
    ]

"""The encoders that ship with mmrec-lmm: one folder each, whose `__init__` imports no torch."""

from mmrec_lmm.api import EncoderSpec, hookimpl

from . import basic, beit3, clip, cnn_sbert, precomputed, vlmo


@hookimpl
def mmrec_register_encoders() -> list[EncoderSpec]:
    return [basic.SPEC, beit3.SPEC, clip.SPEC, cnn_sbert.SPEC, precomputed.SPEC, vlmo.SPEC]

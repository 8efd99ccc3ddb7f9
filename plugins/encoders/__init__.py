"""The encoders that ship with mmrec-lmm: one folder each, whose `__init__` imports no torch."""

from mmrec_lmm.api import EncoderSpec, hookimpl

from . import basic, beit3, clip, cnn_sbert, hf, precomputed, st, vlmo


@hookimpl
def mmrec_register_encoders() -> list[EncoderSpec]:
    return [basic.SPEC, beit3.SPEC, clip.SPEC, cnn_sbert.SPEC, hf.SPEC, precomputed.SPEC, st.SPEC, vlmo.SPEC]

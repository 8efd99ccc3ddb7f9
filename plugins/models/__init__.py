"""The recommenders that ship with mmrec-lmm: one file each, to be read beside its paper."""

from mmrec_lmm.api import ModelSpec, hookimpl

from .. import configs


@hookimpl
def mmrec_register_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="VBPR",
            cls=f"{__name__}.vbpr:VBPR",
            config=f"{__name__}.vbpr:VBPRConfig",
            summary="matrix factorisation with projected item features, BPR loss",
            paper="He & McAuley, AAAI 2016, arXiv:1510.01784",
            configs=configs(),
        ),
    ]

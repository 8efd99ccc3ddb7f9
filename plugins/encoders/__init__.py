"""The encoders that ship with mmrec-lmm: one folder each."""

from mmrec_lmm.api import EncoderSpec, hookimpl

from .. import configs


@hookimpl
def mmrec_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="cnn_sbert",
            cls=f"{__name__}.cnn_sbert.text:SbertEncoder",
            config=f"{__name__}.cnn_sbert:CnnSbertConfig",
            modalities=("text",),
            weights_id=f"{__name__}.cnn_sbert:weights_id",
            summary=(
                "Sentence-BERT (all-MiniLM-L6-v2) for text; the image side arrives with a later release: published CNN "
                "features come by --features image=FILE.npy, or as the data set's own image_feat.npy"
            ),
            paper="Reimers & Gurevych, EMNLP 2019, arXiv:1908.10084",
            licence="Apache-2.0",
            dims={"text": 384},
            configs=configs(),
        ),
    ]

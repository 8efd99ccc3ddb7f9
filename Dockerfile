# mmrec-lmm in a container. UNTESTED: nothing that builds images was at hand when this was written.
#
#   docker build -t mmrec-lmm .
#   docker run --rm -v "$PWD:/study" mmrec-lmm demo
#
# Data, runs and caches lie in the mounted folder. For GPUs: docker run --gpus all; torch from PyPI brings its CUDA parts
# (some 6 GB). A build for CPUs alone is chosen by pip's arguments, as torch's own page of instructions gives them:
#   docker build --build-arg TORCH="torch ..." -t mmrec-lmm .
FROM python:3.11-slim

ARG EXTRAS=encoders
ARG TORCH=torch

COPY . /src
RUN pip install --no-cache-dir ${TORCH} && pip install --no-cache-dir "/src[${EXTRAS}]" && rm -rf /src

ENV MMREC_LMM_HOME=/study/.mmrec-lmm
WORKDIR /study
ENTRYPOINT ["mmrec-lmm"]
CMD ["--help"]

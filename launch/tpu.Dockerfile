# syntax=docker/dockerfile:1
# dynadapt on a TPU VM; on each host of a pod with --env=DYNADAPT_DISTRIBUTED=1. From the
# repository's root:
#
#   docker build --file=launch/tpu.Dockerfile --tag=dynadapt:tpu .
#   docker run --rm --privileged --network=host --shm-size=16g \
#     --volume="$PWD/weights:/work/weights" --volume="$PWD/data:/work/data" \
#     --volume="$PWD/runs:/work/runs" \
#     dynadapt:tpu train --config=quickstart --workdir=runs/quickstart
#
# Weights, data and results stay outside, in the folders that are mounted; they are written by the
# user of number UID, which --build-arg=UID=$(id -u) makes yours.
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /source
RUN python -m venv /opt/dynadapt
# What dynadapt depends on is a layer of its own, until setup.cfg or the version changes.
COPY pyproject.toml setup.cfg ./
COPY dynadapt/__init__.py dynadapt/
RUN --mount=type=cache,target=/root/.cache/pip /opt/dynadapt/bin/pip install ".[tpu]"
COPY LICENSE README.md ./
COPY configs configs
COPY dynadapt dynadapt
RUN --mount=type=cache,target=/root/.cache/pip \
  /opt/dynadapt/bin/pip install --no-deps --force-reinstall .

FROM python:3.12.11-slim-bookworm
ARG UID=1000
RUN useradd --create-home "--uid=$UID" dynadapt && \
  install --directory --owner=dynadapt /work /work/data /work/runs /work/weights
COPY --from=build /opt/dynadapt /opt/dynadapt
ENV PATH=/opt/dynadapt/bin:$PATH DYNADAPT_DATA=/work/data
USER $UID
WORKDIR /work
VOLUME ["/work/data", "/work/runs", "/work/weights"]
ENTRYPOINT ["dynadapt"]

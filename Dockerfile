# syntax=docker/dockerfile:1
#
#   docker build -t provae .
#   docker run --rm --gpus all provae                                   every figure; leave out --gpus for the CPU
#   docker run --rm -v "$PWD/build:/provae/build" provae make figures PROFILE=smoke
#   docker run --rm -p 127.0.0.1:8888:8888 provae make lab              then open the address with the token
#
# torch brings its own CUDA libraries, so the smallest CUDA image will do. To fix the very image, pass its digest:
#   docker build --build-arg BASE=nvidia/cuda@sha256:... -t provae .
# (docker buildx imagetools inspect nvidia/cuda:13.0.2-base-ubuntu24.04 shows it)
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04
FROM ${BASE}

# Not pinned: Ubuntu's archive keeps only the newest build of each package, so a pin soon breaks the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git make python3.12 python3.12-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=ubuntu --group=ubuntu /opt/venv /provae

# The image's own user `ubuntu`, as a number: some hosts refuse to run a user whom they cannot tell from root.
# The environment lies outside the source, so that a mounted source does not hide it.
USER 1000:1000
WORKDIR /provae
ENV HOME=/home/ubuntu \
    MPLCONFIGDIR=/home/ubuntu/.config/matplotlib \
    PYTHONUNBUFFERED=1 \
    VENV=/opt/venv \
    LAB_FLAGS="--ip=0.0.0.0 --port=8888 --no-browser"

# The lock before the source: an edit of the source reuses this layer.
COPY --chown=ubuntu:ubuntu requirements.lock ./
RUN --mount=type=cache,target=/pip-cache,uid=1000,gid=1000 \
    python3.12 -m venv "$VENV" \
    && "$VENV/bin/python" -m pip install --quiet --cache-dir /pip-cache -r requirements.lock

COPY --chown=ubuntu:ubuntu . .
RUN make env

EXPOSE 8888
ENTRYPOINT ["tini", "--"]
CMD ["make", "figures"]

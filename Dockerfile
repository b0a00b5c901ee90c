# syntax=docker/dockerfile:1
#
#   docker build -t provae .
#   mkdir -p build
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD/build:/provae/build" -v "$PWD/figures:/provae/figures" \
#     -v "$PWD/notebooks:/provae/notebooks" provae
#
# makes every figure, into the checkout; what is not mounted is lost with the container. MNIST is kept in build/data.
# Leave out --gpus for the CPU; append `make figures PROFILE=smoke` for a small run, which needs the first mount alone.
# With `-p 127.0.0.1:8888:8888` and `make lab` open the address that it prints, with its token.
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
    && install --directory --owner=ubuntu --group=ubuntu /opt/venv /provae \
    && install --directory --mode=1777 /home/provae \
    && git config --system --add safe.directory /provae

# The image's own user `ubuntu`, as a number: some hosts refuse to run a user whom they cannot tell from root.
# The environment lies outside the source, so that a mounted source does not hide it.
USER 1000:1000
WORKDIR /provae
ENV PYTHONUNBUFFERED=1 \
    VENV=/opt/venv \
    LAB_FLAGS="--ip=0.0.0.0 --port=8888 --no-browser"

# The lock before the source: an edit of the source reuses this layer.
COPY --chown=ubuntu:ubuntu requirements.lock ./
RUN --mount=type=cache,target=/pip-cache,uid=1000,gid=1000 \
    python3.12 -m venv "$VENV" \
    && "$VENV/bin/python" -m pip install --quiet --cache-dir /pip-cache -r requirements.lock

COPY --chown=ubuntu:ubuntu . .
RUN make env

# With `docker run --user` it may be anybody, without a name: their caches go into a home that all may write to, and git
# reads a checkout that is not theirs (safe.directory, above).
ENV HOME=/home/provae \
    PAPERLIB_DATA=/provae/build/data

EXPOSE 8888
ENTRYPOINT ["tini", "--"]
CMD ["make", "figures"]

# Rollout replicas (--target rollout) and the learner (--target learner). Torch and everything else that
# both locks pin is one layer of both images. DEVICE=cuda takes the CUDA locks.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# Where packages come from; empty: what pip's configuration in the base image says.
ARG PIP_INDEX_URL=

FROM ${PYTHON_IMAGE} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The second one has pip and setuptools and stays behind.
RUN python -m venv --without-pip /opt/tempsamp && python -m venv /opt/build
WORKDIR /src
ARG DEVICE=cpu
COPY deploy/locks deploy/locks
RUN cd deploy/locks && for service in rollout learner; do \
        grep -v '^#' $service-$DEVICE.lock | LC_ALL=C sort >/src/$service.txt; \
    done && cd /src \
    && LC_ALL=C comm -12 rollout.txt learner.txt | grep -v '^torch==' >shared.txt \
    && grep '^torch==' rollout.txt >torch.txt \
    && LC_ALL=C comm -23 rollout.txt learner.txt >rollout-only.txt \
    && LC_ALL=C comm -13 rollout.txt learner.txt >learner-only.txt

FROM tools AS shared
ARG DEVICE=cpu
ARG PIP_INDEX_URL
# Where CPU torch is, if pip's own configuration knows none.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# With DEVICE=cuda: indexes of builds for another CUDA than the lock's (deploy/locks/other_cuda.sh).
ARG CUDA_INDEX=
# The secret is empty unless TEMPSAMP_BUILD_CA names a file; it leaves no trace in a layer.
RUN --mount=type=secret,id=build_ca \
    if [ -s /run/secrets/build_ca ]; then export PIP_CERT=/run/secrets/build_ca; fi; \
    [ $DEVICE = cuda ] || CUDA_INDEX=; \
    pip="/opt/build/bin/pip --python /opt/tempsamp/bin/python"; install="$pip install --quiet --no-deps"; \
    for url in $CUDA_INDEX; do install="$install --extra-index-url $url"; done; \
    { $install -r torch.txt || $install --extra-index-url "$TORCH_INDEX" -r torch.txt \
        || { echo "found no $(cat torch.txt) in pip's configuration nor in $TORCH_INDEX (TEMPSAMP_TORCH_INDEX)"; exit 1; }; } \
    && { $install -r shared.txt \
        || { echo "pip cannot get these packages from ${PIP_INDEX_URL:-its own index} (TEMPSAMP_PIP_INDEX)"; exit 1; }; } \
    && CUDA_INDEX="$CUDA_INDEX" deploy/locks/other_cuda.sh $pip

FROM tools AS wheel
ARG PIP_INDEX_URL
RUN --mount=type=secret,id=build_ca \
    if [ -s /run/secrets/build_ca ]; then export PIP_CERT=/run/secrets/build_ca; fi; \
    /opt/build/bin/pip install --quiet --no-deps "$(grep '^setuptools==[0-9.]*$' deploy/locks/cpu.lock)"
COPY pyproject.toml README.md LICENSE tempsamp.py ./
COPY common common
COPY jobs jobs
COPY services services
RUN /opt/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS base
ARG DEVICE=cpu
# vLLM's CPU build is linked against libnuma. Triton compiles a C module when a kernel is first used (Python.h is the base
# image's), and NCCL loads libibverbs where there is InfiniBand. A new volume takes owner and mode of the folder it is mounted
# on, and any user may run this.
RUN packages=libnuma1; \
    if [ $DEVICE = cuda ]; then packages="$packages gcc g++ libc6-dev libibverbs1 ibverbs-providers librdmacm1"; fi; \
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --system --uid 10001 --user-group --no-create-home --home-dir /tmp tempsamp \
    && install --directory --mode 1777 /data /runs /gpu-locks /models
COPY --from=shared /opt/tempsamp /opt/tempsamp
# The root is read-only and any user may run this: what is written goes to /tmp.
ENV PATH=/opt/tempsamp/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp USER=tempsamp XDG_CACHE_HOME=/tmp/cache
WORKDIR /tmp

FROM base AS rollout
ARG PIP_INDEX_URL
ARG DEVICE=cpu
ARG CUDA_INDEX=
RUN --mount=type=secret,id=build_ca \
    --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=tools,source=/src,target=/src \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    if [ -s /run/secrets/build_ca ]; then export PIP_CERT=/run/secrets/build_ca; fi; \
    [ $DEVICE = cuda ] || CUDA_INDEX=; \
    install="/opt/build/bin/pip --python /opt/tempsamp/bin/python install --quiet --no-deps --no-cache-dir"; \
    for url in $CUDA_INDEX; do install="$install --extra-index-url $url"; done; \
    $install -r /src/rollout-only.txt && $install --no-index /wheels/*.whl \
    && if [ $DEVICE = cpu ]; then python -m common.model.torchvision_cpu; fi
COPY deploy/tiny-qwen3vl /opt/models/tiny-qwen3vl
LABEL org.opencontainers.image.title="tempsamp-rollout" org.opencontainers.image.licenses="Apache-2.0"
USER tempsamp
EXPOSE 8200
CMD ["tempsamp", "rollout", "serve", "--config", "/etc/tempsamp/run.toml"]

FROM base AS learner
ARG PIP_INDEX_URL
ARG DEVICE=cpu
# A wheel of flash-attn for DEVICE=cuda: its address, or nothing. From source it compiles for an hour.
ARG FLASH_ATTN=
RUN --mount=type=secret,id=build_ca \
    --mount=type=bind,from=tools,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=tools,source=/src,target=/src \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    if [ -s /run/secrets/build_ca ]; then export PIP_CERT=/run/secrets/build_ca; fi; \
    install="/opt/build/bin/pip --python /opt/tempsamp/bin/python install --quiet --no-deps --no-cache-dir"; \
    $install -r /src/learner-only.txt && $install --no-index /wheels/*.whl \
    && if [ -n "$FLASH_ATTN" ]; then $install "$FLASH_ATTN"; fi \
    && if [ $DEVICE = cpu ]; then python -m common.model.torchvision_cpu; fi
COPY deploy/tiny-qwen3vl /opt/models/tiny-qwen3vl
LABEL org.opencontainers.image.title="tempsamp-learner" org.opencontainers.image.licenses="Apache-2.0"
USER tempsamp
CMD ["tempsamp", "learner", "--config", "/etc/tempsamp/run.toml"]

# CPU:   docker build -t lbvq .
# CUDA:  docker build -t lbvq:cuda --build-arg BASE=nvidia/cuda:TAG --build-arg TORCH_INDEX= .
# Run:   docker run --rm -v "$PWD:/work" lbvq predict video.mp4        (CUDA: --gpus all)
# Neither was built where this was written: there was no Docker.
ARG BASE=python:3.12-slim
FROM ${BASE}
# The base of CUDA has no Python; an environment of its own keeps pip away from that of the system.
RUN command -v python3 >/dev/null && python3 -m venv --help >/dev/null 2>&1 && python3 -c "import ensurepip" \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/lbvq
ENV PATH=/opt/lbvq/bin:$PATH PIP_NO_CACHE_DIR=1
# Small builds without CUDA are on PyTorch's own index; an empty TORCH_INDEX takes the default build of the package index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" "torch>=2.6" "torchvision>=0.21"; fi
COPY . /src/lbvq
RUN pip install /src/lbvq && rm -rf /src/lbvq
ENV VIS_WEIGHTS_DIR=/weights
VOLUME /weights
WORKDIR /work
ENTRYPOINT ["lbvq"]
CMD ["--help"]

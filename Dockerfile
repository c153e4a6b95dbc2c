# docker build -t timm-dad . && docker run --rm timm-dad
FROM python:3.12-slim-bookworm

# CPU by default. For a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130, or the index that pytorch.org names
# for your driver.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# OpenCV, which the extra eval brings, needs both. Their versions are Debian's.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/*

RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.6" "torchvision>=0.21"
RUN --mount=type=bind,target=/src,rw pip install --no-cache-dir "/src[clip,eval,vqgan]"

RUN useradd --create-home --uid 1000 dad && mkdir /work && chown dad /work
USER 1000
WORKDIR /work
ENTRYPOINT ["timm-dad"]
CMD ["demo"]

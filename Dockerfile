# layerloom on a GPU: vLLM's own image with layerloom installed into it.
#
#   docker build -t layerloom .
#   docker run --gpus all --ipc host -p 8000:8000 -v ./family:/family:ro -v layerloom:/cache layerloom
#   docker run … layerloom /family --tensor-parallel-size 2 --max-model-len 8192
ARG VLLM=v0.26.0

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM vllm/vllm-openai:${VLLM}
COPY --from=wheel /wheels /wheels
# What the image has stays as it is; only what it lacks is added.
RUN python3 -m pip list --format=freeze > /wheels/there.txt \
    && python3 -m pip install --no-cache-dir --constraint /wheels/there.txt /wheels/*.whl \
    && rm -r /wheels \
    && useradd --create-home --uid 10001 layerloom \
    && install --directory --owner layerloom /cache
USER 10001
WORKDIR /home/layerloom
# Downloads of the Hub, digests of files, and what compilers keep.
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache VLLM_CACHE_ROOT=/cache/vllm TRITON_CACHE_DIR=/cache/triton \
    NUMBA_CACHE_DIR=/cache/numba
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/health', timeout=4)"]
ENTRYPOINT ["layerloom", "serve"]
CMD ["/family"]

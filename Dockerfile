# CPU:   docker build -t fanoise --build-arg PIP_EXTRA_INDEX_URL=… .    with the address of PyTorch's CPU builds
# CUDA:  docker build -t fanoise --build-arg REQUIREMENTS=requirements-gpu.txt .
# The address stands on pytorch.org/get-started; without it PyPI's torch brings 3 GB of CUDA on Linux, which do no harm.
# Run:   docker run -p 7860:7860 -v fanoise-runs:/app/runs fanoise
#        docker run --gpus all … where the image was built for CUDA
FROM python:3.12-slim
ARG REQUIREMENTS=requirements.txt
ARG PIP_EXTRA_INDEX_URL

# DeepSpeed compiles small extensions at run time
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 fanoise && mkdir /app && chown fanoise /app
USER fanoise
WORKDIR /app
COPY --chown=fanoise requirements*.txt ./
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir -r ${REQUIREMENTS}
COPY --chown=fanoise . .
RUN mkdir -p runs
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1
VOLUME /app/runs
EXPOSE 7860
# the first start makes the demo before it serves
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m --retries=3 \
  CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=4)"
CMD ["python", "-m", "demo", "tour", "--host", "0.0.0.0"]

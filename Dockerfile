# fullrank serve, for machines without a GPU. The image holds code alone; mount what is served:
#
#   docker build -t fullrank:0.1.0 .
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -v "$PWD/run:/models:ro" fullrank:0.1.0
#
# /models is the folder that holds the folder `artifact`, such as a run: a mount of the artefact
# itself would stay at the old one when it is replaced. Flags of `fullrank serve` go to the end.

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/fullrank
ENV PATH=/opt/fullrank/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# First and alone: a change of the code leaves the largest layer as it is.
RUN pip install -c constraints.txt --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY fullrank ./fullrank
RUN pip install -c constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin fullrank
COPY --from=build /opt/fullrank /opt/fullrank
# No file is written but in /tmp, where several workers keep copies of the artefact.
ENV PATH=/opt/fullrank/bin:$PATH HOME=/tmp OMP_NUM_THREADS=1 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
VOLUME ["/models"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["fullrank", "serve", "/models/artifact", "--host", "0.0.0.0"]
CMD ["--workers", "1"]

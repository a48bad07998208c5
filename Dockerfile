# Mimu's server. Build: docker build -t mimu . -- docker-compose.yml has the services that it needs.

# The PostgreSQL that compose runs: its version, and Debian's. The client of it must not need a newer Debian than the image has.
ARG POSTGRES_TAG=16-bookworm

# The first stage may have compilers and pip; only the installed packages are copied to the image.
FROM python:3.13-slim-trixie AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/server.txt /build/server.txt
# Each downloaded file must match a hash of the lock. Packages that are built from source here have none, so the
# environment below is installed from this folder alone, without an index. It has no pip, which an attacker could use.
RUN pip wheel --require-hashes --requirement /build/server.txt --wheel-dir /build/wheels \
    && python -m venv --without-pip /opt/mimu \
    && pip --python /opt/mimu/bin/python install --no-index --no-deps --compile /build/wheels/*.whl

# pg_dump and pg_restore of the PostgreSQL that compose runs, for scripts.backup and scripts.restore: Debian's own are
# older than that server. They use their own copies of libraries.
FROM postgres:${POSTGRES_TAG} AS postgres
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN mkdir -p /client/bin /client/lib /client/libexec \
    && cp /usr/lib/postgresql/*/bin/pg_dump /usr/lib/postgresql/*/bin/pg_restore /client/libexec/ \
    && ldd /client/libexec/* | awk '$3 ~ "^/" && $1 !~ "^lib(c|m|dl|rt|pthread|resolv)[.]so" {print $3}' \
       | sort -u | xargs cp -L -t /client/lib \
    && for name in pg_dump pg_restore; do \
       printf '#!/bin/sh\nLD_LIBRARY_PATH=%s/lib exec %s/libexec/%s "$@"\n' \
           /usr/lib/postgresql/client /usr/lib/postgresql/client "$name" > "/client/bin/$name"; done \
    && chmod 755 /client/bin/*

FROM python:3.13-slim-trixie
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mimu" \
      org.opencontainers.image.description="The server of an end-to-end encrypted messenger" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# A fixed user id, so that the owner of the volume is the same on every machine. The folders are created here because a
# named volume gets the owner of the folder that it covers. The base image's pip is removed.
RUN groupadd --system --gid 10001 mimu \
    && useradd --system --uid 10001 --gid mimu --no-create-home --home-dir /var/lib/mimu \
       --shell /usr/sbin/nologin mimu \
    && install -d -o mimu -g mimu -m 0700 /var/lib/mimu /var/lib/mimu/turn \
    && python -m pip uninstall --yes --quiet --root-user-action=ignore pip

COPY --from=build /opt/mimu /opt/mimu
COPY --from=postgres /client /usr/lib/postgresql/client
RUN /usr/lib/postgresql/client/bin/pg_dump --version && /usr/lib/postgresql/client/bin/pg_restore --version
WORKDIR /app
# Owned by root: the server can read its code but not change it.
COPY mimu server.py turnserver.conf ./
COPY config ./config
COPY handlers ./handlers
COPY migrations ./migrations
COPY models ./models
COPY plugins ./plugins
COPY scripts ./scripts
# scripts.doctor compares the installed packages with it.
COPY requirements/server.txt ./requirements/server.txt

# Unbuffered, so that the last lines before a crash are in the log. No bytecode is written: the root may be read-only.
ENV PATH=/opt/mimu/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MIMU_ENV=production \
    MIMU_DATA_DIR=/var/lib/mimu
USER 10001:10001
EXPOSE 8080

# /health/ready also checks PostgreSQL and Redis, and answers within 2 s; 503 makes urllib raise, which is exit code 1.
# The empty ProxyHandler ignores a proxy of the container's environment.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ.get('PORT') or 8080}/health/ready\", timeout=4)"]
CMD ["python", "server.py"]

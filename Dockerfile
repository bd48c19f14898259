# One image for every process: `docker run --rm lockstep train`, or docker-compose.yml for a server and workers.

FROM python:3.13-slim AS build
# Compiles the kernels; without one, pip would fetch a compiler of 100 MB for it.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY requirements requirements
COPY lockstep lockstep
# The same versions as in a clone, by their hashes: see `scripts/versions`.
RUN python -m venv builder \
    && builder/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.txt \
    && builder/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels .
# The environment is made without pip and copied into the final image, which therefore has no build tools.
RUN python -m venv --without-pip /opt/lockstep \
    && pip --python /opt/lockstep/bin/python install --no-cache-dir --require-hashes --requirement requirements/watch.txt \
    && pip --python /opt/lockstep/bin/python install --no-cache-dir --no-deps wheels/*.whl \
    && /opt/lockstep/bin/python -P -m lockstep.common.numerics.kernels.library

FROM python:3.13-slim
COPY --from=build /opt/lockstep /opt/lockstep
# A new volume takes over the owner and mode of the folder that it covers, so `runs` must exist here. Every user may write
# to it, because compose runs the image as the user of the host who owns the keys.
RUN useradd --create-home --uid 1000 lockstep \
    && install -d -o lockstep -g lockstep /lockstep && install -d -o lockstep -g lockstep -m 1777 /lockstep/runs
ENV PATH=/opt/lockstep/bin:$PATH PYTHONUNBUFFERED=1
USER lockstep
# Each run makes a folder below `runs` in the current folder, which is /lockstep/runs here.
WORKDIR /lockstep
ENTRYPOINT ["lockstep"]
CMD ["--help"]

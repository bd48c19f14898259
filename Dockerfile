# One image for every part: `docker run --rm lockstep train`, or docker-compose.yml for a server and workers.

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY common common
COPY ps ps
COPY worker worker
COPY lockstep lockstep
# Without pip in the environment, nothing of what built it is left in the image: only it is copied.
RUN python -m venv --without-pip /opt/lockstep \
    && pip --python /opt/lockstep/bin/python install --no-cache-dir --constraint constraints.txt '.[watch]'

FROM python:3.13-slim
COPY --from=build /opt/lockstep /opt/lockstep
# A named volume takes over the owner and mode of the folder that it covers, so `runs` has to be there and the user's;
# open to all, since compose may run it as the user of the host whose keys it reads.
RUN useradd --create-home --uid 1000 lockstep \
    && install -d -o lockstep -g lockstep /lockstep && install -d -o lockstep -g lockstep -m 1777 /lockstep/runs
ENV PATH=/opt/lockstep/bin:$PATH PYTHONUNBUFFERED=1
USER lockstep
# Runs go to `runs` below the current folder, /lockstep/runs here, each to a folder named by its time and model.
WORKDIR /lockstep
ENTRYPOINT ["lockstep"]
CMD ["--help"]
